// Elements as loops see them: how a dtype is stored, in which type it is computed, and the exact way between the two.
//
// c10::Half and c10::BFloat16 keep compilers from vectorising a loop (structures, branches), so the 16-bit types are handled as
// bits here, without branches: widening is exact, narrowing rounds to nearest, ties to even, as torch does.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

// Before a loop whose steps touch the same element only: equal pointers (source = target) carry nothing from step to step.
#if defined(__clang__)
#define CL_BENCH_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define CL_BENCH_INDEPENDENT _Pragma("GCC ivdep")
#else
#define CL_BENCH_INDEPENDENT
#endif

namespace cl_bench {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <typename scalar_t>
struct Lane {  // float, double
  using stored = scalar_t;
  using wide = scalar_t;
  static wide widen(stored value) {
    return value;
  }
  static stored narrow(wide value) {
    return value;
  }
};

template <>
struct Lane<c10::BFloat16> {  // the upper half of a float
  using stored = uint16_t;
  using wide = float;
  static wide widen(stored value) {
    return from_bits(static_cast<uint32_t>(value) << 16);
  }
  static stored narrow(wide value) {
    const uint32_t bits = to_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<stored>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
};

template <>
struct Lane<c10::Half> {  // sign, 5 bits of exponent (bias 15; a float's is 127), 10 bits of fraction
  using stored = uint16_t;
  using wide = float;
  static wide widen(stored value) {
    const uint32_t magnitude = value & 0x7fffu;
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const uint32_t infinite = (magnitude << 13) | 0x7f800000u;
    // Below 2^-14 a half counts in steps of 2^-24, which is the step of a float just above 0.5.
    const uint32_t small = to_bits(from_bits(magnitude | 0x3f000000u) - 0.5f);
    const uint32_t bits = magnitude >= 0x7c00u ? infinite : magnitude >= 0x0400u ? normal : small;
    return from_bits(bits | (static_cast<uint32_t>(value & 0x8000u) << 16));
  }
  static stored narrow(wide value) {
    const uint32_t bits = to_bits(value);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude + 0x0fffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    const uint32_t small = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t rounded = magnitude >= (113u << 23) ? normal : small;
    // 65520 is half-way between the largest half and the next power of two: from there on infinity.
    const uint32_t finite = magnitude >= 0x477ff000u ? 0x7c00u : rounded;
    return static_cast<stored>((magnitude > 0x7f800000u ? 0x7e00u : finite) | ((bits >> 16) & 0x8000u));
  }
};

}  // namespace cl_bench
