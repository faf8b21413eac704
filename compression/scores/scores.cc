#include <vector>

#include "compression/scores/score.h"

namespace nni_compression::compression {

// One line for each score of scores/: the function that describes it.
#define NNI_COMPRESSION_SCORES(SCORE) \
  SCORE(Apoz)                         \
  SCORE(BatchNormScale)               \
  SCORE(Fpgm)                         \
  SCORE(L1)                           \
  SCORE(L2)                           \
  SCORE(Magnitude)                    \
  SCORE(MeanActivation)               \
  SCORE(Movement)                     \
  SCORE(Random)                       \
  SCORE(Taylor)

#define NNI_COMPRESSION_DECLARE(name) ScoreInfo name##Score();
NNI_COMPRESSION_SCORES(NNI_COMPRESSION_DECLARE)
#undef NNI_COMPRESSION_DECLARE

const std::vector<ScoreInfo>& AllScores() {
#define NNI_COMPRESSION_DESCRIBE(name) name##Score(),
  static const auto* const scores =
      new std::vector<ScoreInfo>{NNI_COMPRESSION_SCORES(NNI_COMPRESSION_DESCRIBE)};
#undef NNI_COMPRESSION_DESCRIBE
  return *scores;
}

const ScoreInfo* FindScore(absl::string_view name) {
  for (const ScoreInfo& info : AllScores()) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

}  // namespace nni_compression::compression
