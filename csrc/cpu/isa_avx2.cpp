// The kernels, compiled for avx2.
#include "isa.h"

#if RANKREG_X86
#define RANKREG_ISA RANKREG_AVX2
#include "hinge_violations_kernels.h"
#include "positive_ranks_kernels.h"
#include "rank_kernels.h"
#include "rankreg_loss_kernels.h"
#endif
