// rankreg_loss: the two steps of positive_ranks with the regulariser's formulas between them.
// Forward reads every score once and backward once; in between only `kept` ranks a list are stored.
#pragma once

#include "../common/formulas.h"
#include "positive_ranks_kernels.h"
#include "rankreg_loss.h"
#include "target.h"

RANKREG_TARGET_BEGIN
namespace rankreg {
namespace RANKREG_ISA_NAME {
// Z: the number of unmasked items, or 1.
inline int64_t length_of(const Mask& where, int64_t n, bool by_length) {
  if (!by_length) return 1;
  if (!where) return n;
  int64_t length = 0;
  for (int64_t i = 0; i < n; ++i)
    length += where[i] != 0;
  return length;
}

// Exact below 2^53; beyond, what each addition loses is added in the end.
inline double sum_of_terms(const RankReg& formula, const std::vector<double>& ranks) {
  double sum = 0, lost = 0;
  for (const double rank : ranks) {
    const double term = formula.term(rank), next = sum + term;
    lost += sum >= term ? (sum - next) + term : (term - next) + sum;
    sum = next;
  }
  return std::isfinite(sum) ? sum + lost : sum;
}

void rankreg_loss(const View& scores, const View& positives, const View& where,
                  const RankRegOptions& options, Reduction reduction, int64_t lists, int64_t n,
                  int64_t kept, Type rank_type, void* loss, void* state, const Parallel& parallel) {
  std::vector<double> values(static_cast<size_t>(lists), 0.0);
  std::vector<uint8_t> counted(static_cast<size_t>(lists), 0);  // has a positive
  dispatch_rank(rank_type, [&](auto rank_tag) {
    using R = typename decltype(rank_tag)::type;
    dispatch_float(scores.type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = Compute<T>;
      for_lists(lists, n, parallel, [&](int64_t begin, int64_t end, const Parallel& inner) {
        Work<T> work;
        Positives<C>& found = work.found;
        for (int64_t b = begin; b < end; ++b) {
          const ScoreList<T> list{Row<T>(scores, b), Row<uint8_t>(positives, b), Mask(where, b), n};
          find_positives(list, found, inner);
          rank_positives(list, work, inner);
          R* saved = static_cast<R*>(state) + b * (1 + kept);
          saved[0] = R(1);
          const int64_t saves = found.size() <= kept ? found.size() : 0;
          for (int64_t i = 0; i < kept; ++i)
            saved[1 + i] = i < saves ? R(found.rank[size_t(i)]) : R(0);
          if (found.size() == 0) continue;
          const RankReg formula{options.power, double(length_of(list.where, n, options.by_length)),
                                double(found.size())};
          values[size_t(b)] = formula.value(sum_of_terms(formula, found.rank));
          counted[size_t(b)] = 1;
        }
      });

      C* out = static_cast<C*>(loss);
      if (reduction == Reduction::kNone) {
        for (int64_t b = 0; b < lists; ++b)
          out[b] = C(values[size_t(b)]);
        return;
      }
      double sum = 0;
      int64_t divisor = 0;
      for (int64_t b = 0; b < lists; ++b) {
        sum += values[size_t(b)];
        divisor += counted[size_t(b)];
      }
      if (reduction == Reduction::kSum || divisor == 0) divisor = 1;
      out[0] = C(sum / double(divisor));
      for (int64_t b = 0; b < lists; ++b) {
        static_cast<R*>(state)[b * (1 + kept)] = R(double(divisor));
      }
    });
  });
}

void rankreg_loss_backward(const View& grad, const View& scores, const View& positives,
                           const View& state, const View& where, const RankRegOptions& options,
                           int64_t lists, int64_t n, int64_t kept, void* out,
                           const Parallel& parallel) {
  if (lists == 0 || n == 0) return;
  dispatch_rank(state.type, [&](auto rank_tag) {
    using R = typename decltype(rank_tag)::type;
    dispatch_float(scores.type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = Compute<T>;
      const C lam = C(options.lam);
      for_lists(lists, n, parallel, [&](int64_t begin, int64_t end, const Parallel& inner) {
        Work<T> work;
        Positives<C>& found = work.found;
        for (int64_t b = begin; b < end; ++b) {
          const ScoreList<T> list{Row<T>(scores, b), Row<uint8_t>(positives, b), Mask(where, b), n};
          const Row<R> saved(state, b);
          find_positives(list, found, inner);
          if (found.size() <= kept) {
            found.rank.resize(found.at.size());
            for (int64_t i = 0; i < found.size(); ++i)
              found.rank[size_t(i)] = double(saved[1 + i]);
          } else {
            rank_positives(list, work, inner);
          }
          const RankReg formula{options.power, double(length_of(list.where, n, options.by_length)),
                                double(found.size())};
          found.moved.resize(found.at.size());
          for (size_t i = 0; i < found.at.size(); ++i) {
            const C h = C(formula.inner_gradient(found.rank[i]));
            found.moved[i] = perturb(found.score[i], lam, h);
          }
          const C upstream = Row<C>(grad, b)[0] / C(saved[0]);
          step_gradient(list, work, formula.divisor(lam), upstream, static_cast<T*>(out) + b * n,
                        inner);
        }
      });
    });
  });
}

}  // namespace RANKREG_ISA_NAME
}  // namespace rankreg
RANKREG_TARGET_END
