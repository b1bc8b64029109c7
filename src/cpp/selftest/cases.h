// What is hashed, in files of its own.
#pragma once

#include "kernels/kernels.h"
#include "selftest/results.h"

namespace slmq::selftest {

void run_linear(const Kernels& kernels, Results* results);     // linear_cases.cpp
void run_rows(const Kernels& kernels, Results* results);       // row_cases.cpp
void run_attention(const Kernels& kernels, Results* results);  // attention_cases.cpp
void run_training(const Kernels& kernels, Results* results);   // training_cases.cpp

// A tiny recorded model (model_case.cpp), with 1 to max_threads threads.
void run_model(const Kernels& kernels, int max_threads, Results* results);

// All of the above in the default floating-point mode (run.cpp).
Results run_all(const Kernels& kernels, int max_threads);

// Products with matrix registers on a model of AMX's, and what decides whether the real ones are used
// (tile_cases.cpp); returns how many formats have such products.
int run_tiles(Results* results);

}  // namespace slmq::selftest
