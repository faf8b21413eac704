#include "compression/kernels/filters.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>

#include "compression/kernels/dispatch.h"
#include "compression/kernels/isa.h"
#include "compression/kernels/parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nni_compression::compression {
namespace {

constexpr int kLanes = 16;

// Of distances: rows of a tile, which are to stay in the second cache, of the strip of it that is
// to stay in the first, and how many columns of them.
constexpr int64_t kTile = 48;
constexpr int64_t kStrip = 12;
constexpr int64_t kDepth = 512;

// Numbers that are worth a thread.
int64_t FiltersPerThread(const Channels& channels) {
  return std::max<int64_t>(1, kGrain / (channels.outer * channels.inner));
}

// Calls f(first element, number of elements) for the stretches of a filter, in their order.
template <class F>
void ForStretches(const Channels& channels, int64_t filter, F&& f) {
  for (int64_t o = 0; o < channels.outer; ++o) {
    f((o * channels.channels + filter) * channels.inner, channels.inner);
  }
}

// Partial sums make the loop independent of the order in which vectors add.
template <class T, class F>
double Sum(const T* values, int64_t n, F&& of) {
  double partial[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      partial[lane] += of(static_cast<double>(values[i + lane]));
    }
  }
  for (int lane = 0; i < n; ++i, ++lane) partial[lane] += of(static_cast<double>(values[i]));
  double sum = 0;
  for (const double each : partial) sum += each;
  return sum;
}

template <class F>
std::vector<double> FilterSums(DataType dtype, const void* weight, const Channels& channels,
                               F&& of) {
  std::vector<double> sums(static_cast<size_t>(channels.channels), 0.0);
  double* const out = sums.data();
  DispatchWeight(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const T* const values = static_cast<const T*>(weight);
    ParallelFor(channels.channels, FiltersPerThread(channels), [&](int64_t begin, int64_t end) {
      if (channels.inner == 1) {  // filters lie side by side
        for (int64_t o = 0; o < channels.outer; ++o) {
          const T* const row = values + o * channels.channels;
          for (int64_t f = begin; f < end; ++f) out[f] += of(static_cast<double>(row[f]));
        }
        return;
      }
      for (int64_t f = begin; f < end; ++f) {
        ForStretches(channels, f,
                     [&](int64_t first, int64_t n) { out[f] += Sum(values + first, n, of); });
      }
    });
  });
  return sums;
}

// The power of two that is at most the largest magnitude.
template <class T>
int LargestExponent(const T* values, int64_t n) {
  constexpr int kSmallest = -1000;  // whose inverse is a number, too
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(values[i])));
  }
  return largest > 0 ? std::max(std::ilogb(largest), kSmallest) : 0;
}

// Filters as rows of float32, each padded with zeros to a multiple of kLanes, and divided by a
// power of two, so that no square overflows and the largest ones do not vanish.
struct Rows {
  std::unique_ptr<float[]> values;
  int64_t count = 0;
  int64_t length = 0;
  int exponent = 0;

  const float* row(int64_t i) const { return values.get() + i * length; }
};

int64_t RowLength(const Channels& channels) {
  return (channels.outer * channels.inner + kLanes - 1) / kLanes * kLanes;
}

Rows GatherRows(DataType dtype, const void* weight, const Channels& channels) {
  Rows rows;
  rows.count = channels.channels;
  rows.length = RowLength(channels);
  rows.values = std::make_unique<float[]>(static_cast<size_t>(rows.count * rows.length));
  DispatchWeight(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const T* const values = static_cast<const T*>(weight);
    rows.exponent = LargestExponent(values, channels.elements());
    const double scale = std::ldexp(1.0, -rows.exponent);
    ParallelFor(rows.count, FiltersPerThread(channels), [&](int64_t begin, int64_t end) {
      for (int64_t f = begin; f < end; ++f) {
        float* out = rows.values.get() + f * rows.length;
        ForStretches(channels, f, [&](int64_t first, int64_t n) {
          for (int64_t i = 0; i < n; ++i) {
            *out++ = static_cast<float>(static_cast<double>(values[first + i]) * scale);
          }
        });
      }
    });
  });
  return rows;
}

// The sum of kLanes sums of squared differences of two rows, each product added with one rounding:
// bit for bit what all instruction sets compute.
inline double Reduced(const float (&sums)[kLanes]) {
  double sum = 0;
  for (const float each : sums) sum += static_cast<double>(each);
  return sum;
}

struct Portable {
  static constexpr int kHeight = 1;
  static constexpr int kWidth = 1;

  // Adds the squared distances of kRows rows at `a` to kColumns rows at `b`, `stride` apart, over
  // `n` columns.
  template <int kRows, int kColumns>
  static void Add(const float* a, const float* b, int64_t stride, int64_t n, double* out) {
    static_assert(kRows == 1 && kColumns == 1);
    float sums[kLanes] = {};
    for (int64_t k = 0; k < n; k += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float difference = a[k + lane] - b[k + lane];
        sums[lane] = std::fma(difference, difference, sums[lane]);
      }
    }
    *out += Reduced(sums);
  }
};

#if defined(__x86_64__)
struct Avx2 {
  static constexpr int kHeight = 2;
  static constexpr int kWidth = 3;

  template <int kRows, int kColumns>
  __attribute__((target("avx2,fma"))) static void Add(const float* a, const float* b,
                                                      int64_t stride, int64_t n, double* out) {
    __m256 sums[kRows][kColumns][2];
    for (auto& row : sums) {
      for (auto& sum : row) sum[0] = sum[1] = _mm256_setzero_ps();
    }
    for (int64_t k = 0; k < n; k += kLanes) {
      for (int half = 0; half < 2; ++half) {
        __m256 right[kColumns];
        for (int j = 0; j < kColumns; ++j)
          right[j] = _mm256_loadu_ps(b + j * stride + k + 8 * half);
        for (int i = 0; i < kRows; ++i) {
          const __m256 left = _mm256_loadu_ps(a + i * stride + k + 8 * half);
          for (int j = 0; j < kColumns; ++j) {
            const __m256 difference = _mm256_sub_ps(left, right[j]);
            sums[i][j][half] = _mm256_fmadd_ps(difference, difference, sums[i][j][half]);
          }
        }
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) {
        float lanes[kLanes];
        _mm256_storeu_ps(lanes, sums[i][j][0]);
        _mm256_storeu_ps(lanes + 8, sums[i][j][1]);
        out[i * kTile + j] += Reduced(lanes);
      }
    }
  }
};

struct Avx512 {
  static constexpr int kHeight = 4;
  static constexpr int kWidth = 3;

  template <int kRows, int kColumns>
  __attribute__((target("avx512f"))) static void Add(const float* a, const float* b, int64_t stride,
                                                     int64_t n, double* out) {
    __m512 sums[kRows][kColumns];
    for (auto& row : sums) {
      for (__m512& sum : row) sum = _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < n; k += kLanes) {
      __m512 right[kColumns];
      for (int j = 0; j < kColumns; ++j) right[j] = _mm512_loadu_ps(b + j * stride + k);
      for (int i = 0; i < kRows; ++i) {
        const __m512 left = _mm512_loadu_ps(a + i * stride + k);
        for (int j = 0; j < kColumns; ++j) {
          const __m512 difference = _mm512_sub_ps(left, right[j]);
          sums[i][j] = _mm512_fmadd_ps(difference, difference, sums[i][j]);
        }
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) {
        float lanes[kLanes];
        _mm512_storeu_ps(lanes, sums[i][j]);
        out[i * kTile + j] += Reduced(lanes);
      }
    }
  }
};
#endif

// The squared distances of rows [i, i + m) to rows [j, j + n), kTile apart.
template <class Instructions>
void Tile(const Rows& rows, int64_t i, int64_t m, int64_t j, int64_t n, double* out) {
  std::fill(out, out + kTile * kTile, 0.0);
  for (int64_t k = 0; k < rows.length; k += kDepth) {
    const int64_t depth = std::min(kDepth, rows.length - k);
    for (int64_t strip = 0; strip < n; strip += kStrip) {
      const int64_t end = std::min(n, strip + kStrip);
      for (int64_t y = 0; y < m;) {
        const bool tall = y + Instructions::kHeight <= m;
        const float* const a = rows.row(i + y) + k;
        for (int64_t x = strip; x < end;) {
          const bool wide = x + Instructions::kWidth <= end;
          const float* const b = rows.row(j + x) + k;
          double* const at = out + y * kTile + x;
          if (tall && wide) {
            Instructions::template Add<Instructions::kHeight, Instructions::kWidth>(
                a, b, rows.length, depth, at);
          } else if (tall) {
            Instructions::template Add<Instructions::kHeight, 1>(a, b, rows.length, depth, at);
          } else if (wide) {
            Instructions::template Add<1, Instructions::kWidth>(a, b, rows.length, depth, at);
          } else {
            Instructions::template Add<1, 1>(a, b, rows.length, depth, at);
          }
          x += wide ? Instructions::kWidth : 1;
        }
        y += tall ? Instructions::kHeight : 1;
      }
    }
  }
}

using TileFunction = void (*)(const Rows&, int64_t, int64_t, int64_t, int64_t, double*);

TileFunction CurrentTile() {
  switch (CurrentIsa()) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return Tile<Avx2>;
    case Isa::kAvx512:
      return Tile<Avx512>;
#endif
    default:
      return Tile<Portable>;
  }
}

}  // namespace

std::vector<double> FilterAbsSums(DataType dtype, const void* weight, const Channels& channels) {
  return FilterSums(dtype, weight, channels, [](double w) { return std::abs(w); });
}

std::vector<double> FilterNorms(DataType dtype, const void* weight, const Channels& channels) {
  const int exponent = DispatchWeight(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    // Squares of all others are numbers.
    return std::is_same_v<T, double>
               ? LargestExponent(static_cast<const T*>(weight), channels.elements())
               : 0;
  });
  const double scale = std::ldexp(1.0, -exponent);
  std::vector<double> norms = FilterSums(dtype, weight, channels, [scale](double w) {
    const double scaled = w * scale;
    return scaled * scaled;
  });
  for (double& norm : norms) norm = std::ldexp(std::sqrt(norm), exponent);
  return norms;
}

std::vector<double> FilterDistanceSums(DataType dtype, const void* weight,
                                       const Channels& channels) {
  const Rows rows = GatherRows(dtype, weight, channels);
  const int64_t tiles = (rows.count + kTile - 1) / kTile;
  // For each filter, the sums of its distances to those of each tile, so that the order in which
  // tiles are added does not depend on threads.
  std::vector<double> parts(static_cast<size_t>(rows.count * tiles), 0.0);
  const TileFunction tile = CurrentTile();
  const int64_t pairs = tiles * (tiles + 1) / 2;
  const int64_t grain = std::max<int64_t>(1, 16 * kGrain / (kTile * kTile * rows.length));
  ParallelFor(pairs, grain, [&](int64_t begin, int64_t end) {
    std::vector<double> squares(kTile * kTile);
    // The pair of that number, of a triangle that is counted row by row.
    auto row = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(begin) + 1) - 1) / 2);
    while (row * (row + 1) / 2 > begin) --row;
    while ((row + 1) * (row + 2) / 2 <= begin) ++row;
    int64_t column = begin - row * (row + 1) / 2;
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t i = row * kTile;
      const int64_t j = column * kTile;
      const int64_t m = std::min(kTile, rows.count - i);
      const int64_t n = std::min(kTile, rows.count - j);
      tile(rows, i, m, j, n, squares.data());
      for (int64_t y = 0; y < m; ++y) {
        for (int64_t x = 0; x < n; ++x) {
          const double distance = std::sqrt(squares[static_cast<size_t>(y * kTile + x)]);
          parts[static_cast<size_t>((i + y) * tiles + column)] += distance;
          if (row != column) parts[static_cast<size_t>((j + x) * tiles + row)] += distance;
        }
      }
      if (++column > row) {
        ++row;
        column = 0;
      }
    }
  });
  std::vector<double> sums(static_cast<size_t>(rows.count), 0.0);
  for (int64_t f = 0; f < rows.count; ++f) {
    double sum = 0;
    for (int64_t t = 0; t < tiles; ++t) sum += parts[static_cast<size_t>(f * tiles + t)];
    sums[static_cast<size_t>(f)] = std::ldexp(sum, rows.exponent);
  }
  return sums;
}

int64_t FilterDistanceBytes(const Channels& channels) {
  const int64_t tiles = (channels.channels + kTile - 1) / kTile;
  return channels.channels * (RowLength(channels) * static_cast<int64_t>(sizeof(float)) +
                              (tiles + 1) * static_cast<int64_t>(sizeof(double)));
}

}  // namespace nni_compression::compression
