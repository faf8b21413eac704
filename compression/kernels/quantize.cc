#include "compression/kernels/quantize.h"

#include <algorithm>
#include <cmath>

#include "compression/kernels/dispatch.h"
#include "compression/kernels/parallel.h"

namespace nni_compression::compression {
namespace {

// Rounds half to even as nearbyint does, for |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a
// fraction. Unlike a call of nearbyint it becomes vector instructions on any processor.
inline float RoundHalfEven(float x) {
  constexpr float kShift = 12582912.0f;
  return x + kShift - kShift;
}

// NaN, which only a weight that changes meanwhile can have, becomes `low`: it must fit an integer.
inline float Clamp(float x, float low, float high) { return std::min(high, std::max(low, x)); }

// One channel's weight to its code, as a whole float in [code_min, code_max].
struct HalfEven {
  float inverse_scale, zero_point, code_min, code_max;
  HalfEven(const QuantizationParameters& p, int64_t c, float)
      : inverse_scale(1.0f / p.scale[c]),
        zero_point(static_cast<float>(p.zero_point[c])),
        code_min(static_cast<float>(p.code_min)),
        code_max(static_cast<float>(p.code_max)) {}
  float operator()(float w) const {
    // Clamping first changes no result (the bounds are whole) and keeps RoundHalfEven exact.
    const float x =
        Clamp(w * inverse_scale, code_min - zero_point - 1.0f, code_max - zero_point + 1.0f);
    return Clamp(RoundHalfEven(x) + zero_point, code_min, code_max);
  }
};

struct Truncate {
  float scale, code_min, code_max;
  Truncate(const QuantizationParameters& p, int64_t c, float)
      : scale(p.scale[c]),
        code_min(static_cast<float>(p.code_min)),
        code_max(static_cast<float>(p.code_max)) {}
  float operator()(float w) const {
    // A whole bound: truncating after clamping is the same, and fits an int.
    return static_cast<float>(static_cast<int32_t>(Clamp(w / scale, code_min, code_max)));
  }
};

struct DoReFa {
  float twice_max, code_max;
  DoReFa(const QuantizationParameters& p, int64_t, float max_tanh)
      : twice_max(2.0f * max_tanh), code_max(static_cast<float>(p.code_max)) {}
  float operator()(float w) const {
    const float u = std::tanh(w) / twice_max + 0.5f;
    return Clamp(RoundHalfEven(u * code_max), 0.0f, code_max);
  }
};

// One channel's code to its value.
struct AffineValue {
  float scale, zero_point;
  AffineValue(const QuantizationParameters& p, int64_t c)
      : scale(p.scale[c]), zero_point(static_cast<float>(p.zero_point[c])) {}
  float operator()(float code) const { return (code - zero_point) * scale; }
};

struct DoReFaValue {
  float code_max;
  DoReFaValue(const QuantizationParameters& p, int64_t)
      : code_max(static_cast<float>(p.code_max)) {}
  float operator()(float code) const { return 2.0f * code / code_max - 1.0f; }
};

template <class W, class Out, class Encode, class Finish>
void Run(const W* in, Out* out, int64_t n, Encode encode, Finish finish) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<Out>(finish(encode(static_cast<float>(in[i]))));
  }
}

// Calls run(channel, begin, count) for the runs of equal channel in parts of the tensor.
template <class F>
void ForRuns(const Channels& shape, const F& run) {
  ParallelFor(shape.elements(), kGrain, [&](int64_t begin, int64_t end) {
    int64_t c = begin / shape.inner % shape.channels;
    int64_t next = begin - begin % shape.inner;
    while (begin < end) {
      next += shape.inner;
      run(c, begin, std::min(next, end) - begin);
      begin = next;
      c = c + 1 == shape.channels ? 0 : c + 1;
    }
  });
}

template <class Encode, class Value>
struct Kernel {
  const Channels& shape;
  const QuantizationParameters& parameters;
  float max_tanh;

  template <class W>
  void Values(const W* in, W* out) const {
    ForRuns(shape, [&](int64_t c, int64_t i, int64_t n) {
      Run(in + i, out + i, n, Encode(parameters, c, max_tanh), Value(parameters, c));
    });
  }

  template <class Code, class W>
  void Codes(const W* in, Code* out) const {
    const auto to_int = [](float code) { return static_cast<int32_t>(code); };
    ForRuns(shape, [&](int64_t c, int64_t i, int64_t n) {
      Run(in + i, out + i, n, Encode(parameters, c, max_tanh), to_int);
    });
  }

  template <class W>
  void To(const W* in, QuantizeReply reply, void* out) const {
    if (reply == QuantizeReply::kValues) return Values(in, static_cast<W*>(out));
    switch (CodeType(parameters)) {
      case DataType::kInt8:
        return Codes(in, static_cast<int8_t*>(out));
      case DataType::kInt16:
        return Codes(in, static_cast<int16_t*>(out));
      case DataType::kUInt8:
        return Codes(in, static_cast<uint8_t*>(out));
      default:
        return Codes(in, static_cast<uint16_t*>(out));
    }
  }
};

}  // namespace

DataType CodeType(const QuantizationParameters& parameters) {
  if (parameters.code_min < 0) {
    return parameters.bits <= 8 ? DataType::kInt8 : DataType::kInt16;
  }
  return parameters.bits <= 8 ? DataType::kUInt8 : DataType::kUInt16;
}

void QuantizeTo(DataType dtype, const void* weight, const Channels& channels,
                const QuantizationParameters& parameters, QuantizeReply reply, float max_tanh,
                void* out) {
  DispatchWeight(dtype, [&](auto tag) {
    const auto* in = static_cast<const typename decltype(tag)::Type*>(weight);
    switch (parameters.rounding) {
      case Rounding::kHalfEven:
        return Kernel<HalfEven, AffineValue>{channels, parameters, max_tanh}.To(in, reply, out);
      case Rounding::kTruncate:
        return Kernel<Truncate, AffineValue>{channels, parameters, max_tanh}.To(in, reply, out);
      case Rounding::kDoReFa:
        return Kernel<DoReFa, DoReFaValue>{channels, parameters, max_tanh}.To(in, reply, out);
    }
  });
}

}  // namespace nni_compression::compression
