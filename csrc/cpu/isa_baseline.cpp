// The kernels, compiled for what every machine of its architecture has.
#include "isa.h"

#define RANKREG_ISA RANKREG_BASELINE
#include "hinge_violations_kernels.h"
#include "positive_ranks_kernels.h"
#include "rank_kernels.h"
#include "rankreg_loss_kernels.h"
