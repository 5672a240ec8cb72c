// All tests; main.cpp lists them.
#pragma once

namespace tests {

// common.cpp
void oracle_agrees_with_itself();
void half_round_trip();
void bfloat16_round_trip();
void half_rounding();
void bfloat16_rounding();
void keys();
void parts_and_lists();

// rank.cpp, blackbox.cpp, internals_rank.cpp
void rank_small();
void rank_threaded();
void rank_many_lists();
void rank_edges();
void blackbox_small();
void blackbox_threaded();
void blackbox_edges();
void huge_lists();

// rankdata.cpp
void rankdata_small();
void rankdata_threaded();

// positive_ranks.cpp, internals_positive_ranks.cpp
void positive_ranks_small();
void positive_ranks_threaded();
void positive_ranks_edges();
void places_of_scores();
void sorted_keys();

// rankreg_loss.cpp
void rankreg_loss_small();
void rankreg_loss_threaded();
void rankreg_loss_edges();

}  // namespace tests
