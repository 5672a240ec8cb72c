"""Drop-in modules, one per library stood in for: change the import, keep the code.

- :mod:`rankreg_ext.compat.scipy_stats`: ``rankdata`` of ``scipy.stats``, for NumPy arrays.
"""
