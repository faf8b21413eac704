#include "compression/kernels/filters.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "compression/kernels/dispatch.h"
#include "compression/kernels/isa.h"
#include "compression/kernels/parallel.h"

namespace nni_compression::compression {
namespace {

constexpr int kLanes = 16;

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
    double largest = 0;
    for (int64_t i = 0; i < channels.elements(); ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(values[i])));
    }
    constexpr int kSmallest = -1000;  // whose inverse is a number, too
    if (largest > 0) rows.exponent = std::max(std::ilogb(largest), kSmallest);
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

// Sixteen numbers, which the compiler maps to the registers that the instruction set has. Products
// and sums are rounded apart (-ffp-contract=off).
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

// The squared distances of kHeight rows at `a` to kWidth rows at `b`, `length` apart.
template <int kHeight, int kWidth>
inline __attribute__((always_inline)) void SquaredDistances(const float* a, const float* b,
                                                            int64_t length, double* out,
                                                            int64_t stride) {
  Lanes sums[kHeight][kWidth] = {};
  for (int64_t k = 0; k < length; k += kLanes) {
    Lanes left[kHeight];
    for (int i = 0; i < kHeight; ++i) {
      left[i] = *reinterpret_cast<const Lanes*>(a + i * length + k);
    }
    for (int j = 0; j < kWidth; ++j) {
      const Lanes right = *reinterpret_cast<const Lanes*>(b + j * length + k);
      for (int i = 0; i < kHeight; ++i) {
        const Lanes difference = left[i] - right;
        sums[i][j] += difference * difference;
      }
    }
  }
  for (int i = 0; i < kHeight; ++i) {
    for (int j = 0; j < kWidth; ++j) {
      double sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(sums[i][j][lane]);
      out[i * stride + j] = sum;
    }
  }
}

constexpr int64_t kTile = 32;  // rows of a tile, which are to stay in a cache

// Of a tile of rows [i, i + m) and [j, j + n): the squared distances.
template <int kRows, int kColumns>
inline __attribute__((always_inline)) void Tile(const Rows& rows, int64_t i, int64_t m, int64_t j,
                                                int64_t n, double* out) {
  for (int64_t y = 0; y < m;) {
    const bool tall = y + kRows <= m;
    for (int64_t x = 0; x < n;) {
      const bool wide = x + kColumns <= n;
      const float* const a = rows.row(i + y);
      const float* const b = rows.row(j + x);
      double* const at = out + y * kTile + x;
      if (tall && wide) {
        SquaredDistances<kRows, kColumns>(a, b, rows.length, at, kTile);
      } else if (tall) {
        SquaredDistances<kRows, 1>(a, b, rows.length, at, kTile);
      } else if (wide) {
        SquaredDistances<1, kColumns>(a, b, rows.length, at, kTile);
      } else {
        SquaredDistances<1, 1>(a, b, rows.length, at, kTile);
      }
      x += wide ? kColumns : 1;
    }
    y += tall ? kRows : 1;
  }
}

using TileFunction = void (*)(const Rows&, int64_t, int64_t, int64_t, int64_t, double*);

void PortableTile(const Rows& rows, int64_t i, int64_t m, int64_t j, int64_t n, double* out) {
  Tile<1, 1>(rows, i, m, j, n, out);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void Avx2Tile(const Rows& rows, int64_t i, int64_t m, int64_t j,
                                              int64_t n, double* out) {
  Tile<2, 2>(rows, i, m, j, n, out);
}

__attribute__((target("avx512f,prefer-vector-width=512"))) void Avx512Tile(const Rows& rows,
                                                                           int64_t i, int64_t m,
                                                                           int64_t j, int64_t n,
                                                                           double* out) {
  Tile<4, 4>(rows, i, m, j, n, out);
}
#endif

TileFunction CurrentTile() {
  switch (CurrentIsa()) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return Avx2Tile;
    case Isa::kAvx512:
      return Avx512Tile;
#endif
    default:
      return PortableTile;
  }
}

}  // namespace

std::vector<double> FilterAbsSums(DataType dtype, const void* weight, const Channels& channels) {
  return FilterSums(dtype, weight, channels, [](double w) { return std::abs(w); });
}

std::vector<double> FilterSquareSums(DataType dtype, const void* weight, const Channels& channels) {
  return FilterSums(dtype, weight, channels, [](double w) { return w * w; });
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
