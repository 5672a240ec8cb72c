"""The tests of test_gpu.py on the kernels in Triton."""

from samples import TRITON
from test_gpu import (  # noqa: F401
    _backend,
    test_compile,
    test_current_stream_is_the_one_that_is_used,
    test_graph_of_empty_lists,
    test_graph_of_everything_is_replayed_with_fresh_inputs,
    test_graph_of_hinge_violations,
    test_long_lists_in_any_layout,
    test_many_lists,
    test_memory_does_not_grow_with_calls,
    test_more_than_2_31_scores_in_all,
    test_positives_of_a_million,
    test_same_bits_in_every_run,
    test_smoke,
    test_smoke_of_hinge_violations,
    test_stream_and_device_are_those_of_the_tensor,
    test_stream_is_never_waited_for_by_the_host,
    test_streams_do_not_get_in_each_others_way,
    test_streams_of_several_threads,
    test_uninitialised_memory_is_poisoned_here_too,
)

pytestmark = list(TRITON)
BACKEND = "triton"
