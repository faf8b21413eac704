// Included by loops-inl.h: what reads weights as numbers. Weights of all types pass through a block
// of float32 that stays in the nearest cache, so that each loop exists once.
constexpr int64_t kBlock = 512;

inline void WidenHalf(const uint16_t* in, int64_t n, float* out) {
  int64_t i = 0;
#if NNI_COMPRESSION_ISA_LEVEL == 2
  for (; i + 16 <= n; i += 16) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i));
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(half));
  }
#elif NNI_COMPRESSION_ISA_LEVEL == 1
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
  }
#endif
  for (; i < n; ++i) out[i] = c10::detail::fp16_ieee_to_fp32_value(in[i]);
}

inline void NarrowHalf(const float* in, int64_t n, uint16_t* out) {
  int64_t i = 0;
#if NNI_COMPRESSION_ISA_LEVEL == 2
  for (; i + 16 <= n; i += 16) {
    const __m256i half = _mm512_cvtps_ph(_mm512_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), half);
  }
#elif NNI_COMPRESSION_ISA_LEVEL == 1
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), half);
  }
#endif
  for (; i < n; ++i) out[i] = c10::detail::fp16_ieee_from_fp32_value(in[i]);
}

// The weights [begin, begin + n) as float32: where they are, or in `block`.
inline const float* Widen(DataType dtype, const void* weight, int64_t begin, int64_t n,
                          float* block) {
  switch (dtype) {
    case DataType::kFloat16:
      WidenHalf(static_cast<const uint16_t*>(weight) + begin, n, block);
      return block;
    case DataType::kBFloat16: {
      const uint16_t* in = static_cast<const uint16_t*>(weight) + begin;
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = uint32_t{in[i]} << 16;
        std::memcpy(block + i, &bits, sizeof bits);
      }
      return block;
    }
    case DataType::kFloat64: {
      const double* in = static_cast<const double*>(weight) + begin;
      for (int64_t i = 0; i < n; ++i) block[i] = static_cast<float>(in[i]);
      return block;
    }
    default:
      return static_cast<const float*>(weight) + begin;
  }
}

// The largest number of a type that a float32 can be.
inline float LargestFinite(DataType dtype) {
  if (dtype == DataType::kFloat16) return 65504.0f;
  if (dtype == DataType::kBFloat16) return 3.38953138925153547590e+38f;  // 255 * 2^120
  return std::numeric_limits<float>::max();
}

// The other way, rounding to the nearest, ties to even. The numbers are no NaNs, and not beyond
// LargestFinite.
inline void Narrow(DataType dtype, const float* in, int64_t n, void* weight, int64_t begin) {
  switch (dtype) {
    case DataType::kFloat16:
      return NarrowHalf(in, n, static_cast<uint16_t*>(weight) + begin);
    case DataType::kBFloat16: {
      uint16_t* out = static_cast<uint16_t*>(weight) + begin;
      for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        std::memcpy(&bits, in + i, sizeof bits);
        out[i] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
      }
      return;
    }
    case DataType::kFloat64: {
      double* out = static_cast<double*>(weight) + begin;
      for (int64_t i = 0; i < n; ++i) out[i] = in[i];
      return;
    }
    default:
      std::memcpy(static_cast<float*>(weight) + begin, in, n * sizeof(float));
  }
}

// Many bounds side by side, so that the loop does not wait for itself.
struct Lanes {
  static constexpr int kLanes = 64;
  float minimum[kLanes];
  float maximum[kLanes];
  int32_t largest[kLanes];  // magnitude, as an integer: tells NaNs and infinities
};

inline void AddBounds(const float* in, int64_t n, Bounds& bounds) {
  constexpr int kLanes = Lanes::kLanes;
  constexpr int32_t kMagnitude = 0x7fffffff;
  constexpr int32_t kInfinity = 0x7f800000;
  int64_t i = 0;
  if (n >= kLanes) {
    Lanes lanes;
    for (int j = 0; j < kLanes; ++j) {
      lanes.minimum[j] = bounds.minimum;
      lanes.maximum[j] = bounds.maximum;
      lanes.largest[j] = 0;
    }
    for (; i + kLanes <= n; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        const float w = in[i + j];
        int32_t bits;
        std::memcpy(&bits, &w, sizeof bits);
        bits &= kMagnitude;
        lanes.largest[j] = bits > lanes.largest[j] ? bits : lanes.largest[j];
        lanes.minimum[j] = w < lanes.minimum[j] ? w : lanes.minimum[j];
        lanes.maximum[j] = w > lanes.maximum[j] ? w : lanes.maximum[j];
      }
    }
    for (int j = 0; j < kLanes; ++j) {
      bounds.minimum = lanes.minimum[j] < bounds.minimum ? lanes.minimum[j] : bounds.minimum;
      bounds.maximum = lanes.maximum[j] > bounds.maximum ? lanes.maximum[j] : bounds.maximum;
      bounds.bad |= lanes.largest[j] >= kInfinity;
    }
  }
  for (; i < n; ++i) {
    const float w = in[i];
    int32_t bits;
    std::memcpy(&bits, &w, sizeof bits);
    bounds.bad |= (bits & kMagnitude) >= kInfinity;
    bounds.minimum = w < bounds.minimum ? w : bounds.minimum;
    bounds.maximum = w > bounds.maximum ? w : bounds.maximum;
  }
}

inline Bounds BoundsOf(DataType dtype, const void* weight, int64_t begin, int64_t count) {
  Bounds bounds = {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                   false};
  float block[kBlock];
  // Float32 needs no block.
  const int64_t step = dtype == DataType::kFloat32 ? count : kBlock;
  for (int64_t i = 0; i < count; i += step) {
    const int64_t n = count - i < step ? count - i : step;
    AddBounds(Widen(dtype, weight, begin + i, n, block), n, bounds);
  }
  return bounds;
}

inline void AddEach(DataType dtype, const void* weight, int64_t begin, int64_t count,
                    Bounds* bounds) {
  float block[kBlock];
  for (int64_t i = 0; i < count; i += kBlock) {
    const int64_t n = count - i < kBlock ? count - i : kBlock;
    const float* in = Widen(dtype, weight, begin + i, n, block);
    for (int64_t j = 0; j < n; ++j) AddBounds(in + j, 1, bounds[i + j]);
  }
}

// Rounds half to even as nearbyint does, for |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a
// fraction. Unlike a call of nearbyint it becomes vector instructions on any processor.
inline float RoundHalfEven(float x) {
  constexpr float kShift = 12582912.0f;
  return x + kShift - kShift;
}

// NaN, which only a weight that changes meanwhile can have, becomes `low`: it must fit an integer.
inline float Clamp(float x, float low, float high) {
  const float above = low < x ? x : low;
  return above < high ? above : high;
}

// `yes ? a : b` by bits: compilers would make a branch of the choice between two computations.
inline float Choose(bool yes, float a, float b) {
  uint32_t a_bits;
  uint32_t b_bits;
  std::memcpy(&a_bits, &a, sizeof a);
  std::memcpy(&b_bits, &b, sizeof b);
  const uint32_t mask = 0u - static_cast<uint32_t>(yes);
  const uint32_t bits = (a_bits & mask) | (b_bits & ~mask);
  float chosen;
  std::memcpy(&chosen, &bits, sizeof chosen);
  return chosen;
}

// e^x for 0 <= x <= 80, to about one unit in the last place: 2^n e^r with r in +-ln(2)/2, and a
// polynomial for e^r (those of this and the next function are Cephes').
inline float Exp(float x) {
  const float n = RoundHalfEven(x * 1.44269504088896341f);
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// tanh(x) to a few units in the last place, without a branch.
inline float Tanh(float x) {
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = p * z * x + x;
  const float magnitude = std::fabs(x);
  const float bounded = Choose(magnitude < 20.0f, magnitude, 20.0f);  // tanh(20) is 1
  const float large = 1.0f - 2.0f / (Exp(2.0f * bounded) + 1.0f);
  return Choose(magnitude < 0.625f, small, std::copysign(large, x));
}

// One channel's weight to its code, as a whole float in [code_min, code_max].
struct HalfEven {
  static constexpr bool kOfTanh = false;
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
  static constexpr bool kOfTanh = false;
  float scale, zero_point, code_min, code_max;
  Truncate(const QuantizationParameters& p, int64_t c, float)
      : scale(p.scale[c]),
        zero_point(static_cast<float>(p.zero_point[c])),
        code_min(static_cast<float>(p.code_min)),
        code_max(static_cast<float>(p.code_max)) {}
  float operator()(float w) const {
    // A whole bound: truncating after clamping is the same, and fits an int. The zero point is 0:
    // g++ 12 makes one instruction of the casts, which gives -0 for -0.5, and the sum makes it 0.
    return static_cast<float>(static_cast<int32_t>(Clamp(w / scale, code_min, code_max))) +
           zero_point;
  }
};

struct DoReFa {
  static constexpr bool kOfTanh = true;  // takes tanh(w) for w
  float twice_max, code_max;
  DoReFa(const QuantizationParameters& p, int64_t, float max_tanh)
      : twice_max(2.0f * max_tanh), code_max(static_cast<float>(p.code_max)) {}
  float operator()(float tanh) const {
    const float u = tanh / twice_max + 0.5f;
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

template <class Code, class Encode>
void EncodeTo(const float* in, int64_t n, Encode encode, Code* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<Code>(static_cast<int32_t>(encode(in[i])));
}

template <class Encode, class Value>
struct Quantizer {
  DataType dtype;
  const void* weight;
  const QuantizationParameters& parameters;
  float max_tanh;
  void* out;

  // The weights [begin, begin + n) as Encode takes them.
  const float* Load(int64_t begin, int64_t n, float* block) const {
    const float* in = Widen(dtype, weight, begin, n, block);
    if constexpr (Encode::kOfTanh) {
      for (int64_t i = 0; i < n; ++i) block[i] = Tanh(in[i]);
      return block;
    }
    return in;
  }

  // `n` weights of channel c.
  template <class Code>
  void Codes(int64_t c, int64_t begin, int64_t n) const {
    const Encode encode(parameters, c, max_tanh);
    float block[kBlock];
    for (int64_t i = begin; i < begin + n; i += kBlock) {
      const int64_t size = begin + n - i < kBlock ? begin + n - i : kBlock;
      EncodeTo(Load(i, size, block), size, encode, static_cast<Code*>(out) + i);
    }
  }

  void Values(int64_t c, int64_t begin, int64_t n) const {
    const Encode encode(parameters, c, max_tanh);
    const Value value(parameters, c);
    const float largest = LargestFinite(dtype);
    // Of hardly any weight, so that the others need no pass for it.
    const bool saturates = !(std::fabs(value(static_cast<float>(parameters.code_min))) <= largest &&
                             std::fabs(value(static_cast<float>(parameters.code_max))) <= largest);
    float block[kBlock];
    for (int64_t i = begin; i < begin + n; i += kBlock) {
      const int64_t size = begin + n - i < kBlock ? begin + n - i : kBlock;
      const float* in = Load(i, size, block);
      // Two loops, or the compiler makes a branch of what clamping chooses between.
      for (int64_t j = 0; j < size; ++j) block[j] = encode(in[j]);
      for (int64_t j = 0; j < size; ++j) block[j] = value(block[j]);
      for (int64_t j = 0; saturates && j < size; ++j) block[j] = Clamp(block[j], -largest, largest);
      Narrow(dtype, block, size, out, i);
    }
  }

  // Cuts [begin, end) into runs of one channel.
  void Run(const Channels& shape, QuantizeReply reply, int64_t begin, int64_t end) const {
    const bool is_signed = parameters.code_min < 0;
    int64_t c = begin / shape.inner % shape.channels;
    int64_t next = begin - begin % shape.inner;
    while (begin < end) {
      next += shape.inner;
      const int64_t n = (next < end ? next : end) - begin;
      if (reply == QuantizeReply::kValues) {
        Values(c, begin, n);
      } else if (parameters.bits <= 8) {
        is_signed ? Codes<int8_t>(c, begin, n) : Codes<uint8_t>(c, begin, n);
      } else {
        is_signed ? Codes<int16_t>(c, begin, n) : Codes<uint16_t>(c, begin, n);
      }
      begin = next;
      c = c + 1 == shape.channels ? 0 : c + 1;
    }
  }
};

inline void Quantize(DataType dtype, const void* weight, const Channels& channels,
                     const QuantizationParameters& parameters, QuantizeReply reply, float max_tanh,
                     int64_t begin, int64_t end, void* out) {
  switch (parameters.rounding) {
    case Rounding::kHalfEven:
      return Quantizer<HalfEven, AffineValue>{dtype, weight, parameters, max_tanh, out}.Run(
          channels, reply, begin, end);
    case Rounding::kTruncate:
      return Quantizer<Truncate, AffineValue>{dtype, weight, parameters, max_tanh, out}.Run(
          channels, reply, begin, end);
    case Rounding::kDoReFa:
      return Quantizer<DoReFa, DoReFaValue>{dtype, weight, parameters, max_tanh, out}.Run(
          channels, reply, begin, end);
  }
}
