// exp, log, pow, sin and cos in float64 from + - * / alone: the same bits with every C library.
// For tables and frequencies (not hot); absolute error near 1e-15 for the arguments used there.
#pragma once

namespace slmq {

double exact_exp(double x);
double exact_log(double x);                                 // x > 0
double exact_pow(double base, double power);                // base > 0
void exact_sincos(double x, double* sine, double* cosine);  // |x| < 1e9

}  // namespace slmq
