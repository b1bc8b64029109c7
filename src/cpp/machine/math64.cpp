// Compiled with -ffp-contract=off: a fused multiply-add would change bits between machines.
#include "machine/math64.h"

#include <cmath>
#include <cstdint>

namespace slmq {
namespace {

constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;

// pi / 2 in three parts of 33 bits: n * part is exact for |n| < 2^20 (Cody and Waite, 1980)
constexpr double kHalfPi1 = 1.57079632673412561417e+00;
constexpr double kHalfPi2 = 6.07710050630396597660e-11;
constexpr double kHalfPi3 = 2.02226624879595063154e-21;

double sin_series(double r) {  // |r| <= pi / 4
  const double r2 = r * r;
  double sum = 0.0, term = r;
  for (int i = 1; i < 24; i += 2) {
    sum = sum + term;
    term = -term * r2 / static_cast<double>((i + 1) * (i + 2));
  }
  return sum;
}

double cos_series(double r) {
  const double r2 = r * r;
  double sum = 0.0, term = 1.0;
  for (int i = 0; i < 24; i += 2) {
    sum = sum + term;
    term = -term * r2 / static_cast<double>((i + 1) * (i + 2));
  }
  return sum;
}

}  // namespace

double exact_exp(double x) {
  if (!(x < 710.0)) return x - x == 0.0 ? HUGE_VAL : x;  // overflow; infinity and NaN stay
  if (x < -746.0) return 0.0;
  const double n = std::floor(x / 0.693147180559945309417 + 0.5);
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double sum = 1.0, term = 1.0;
  for (int i = 1; i < 24; ++i) {
    term = term * r / static_cast<double>(i);
    sum = sum + term;
  }
  return std::ldexp(sum, static_cast<int>(n));
}

double exact_log(double x) {
  int exponent = 0;
  double m = std::frexp(x, &exponent);  // in [0.5, 1)
  if (m < 0.70710678118654752440) {
    m = m * 2.0;
    --exponent;
  }
  const double s = (m - 1.0) / (m + 1.0), s2 = s * s;  // log m = 2 atanh s, |s| < 0.172
  double sum = 0.0, power = s;
  for (int i = 1; i < 32; i += 2) {
    sum = sum + power / static_cast<double>(i);
    power = power * s2;
  }
  const double e = static_cast<double>(exponent);
  return e * kLn2High + (2.0 * sum + e * kLn2Low);
}

double exact_pow(double base, double power) { return exact_exp(power * exact_log(base)); }

void exact_sincos(double x, double* sine, double* cosine) {
  const double n = std::floor(x / 1.57079632679489661923 + 0.5);
  const double r = ((x - n * kHalfPi1) - n * kHalfPi2) - n * kHalfPi3;
  const double s = sin_series(r), c = cos_series(r);
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      *sine = s;
      *cosine = c;
      break;
    case 1:
      *sine = c;
      *cosine = -s;
      break;
    case 2:
      *sine = -s;
      *cosine = -c;
      break;
    default: *sine = -c; *cosine = s;
  }
}

}  // namespace slmq
