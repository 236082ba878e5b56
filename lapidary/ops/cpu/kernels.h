#pragma once

#include <cstdint>

#include "lapidary/core/dtype.h"
#include "lapidary/ops/adamw_step.h"

// Vector loops over one row, defined in simd_*.cpp for the element types that occur. A pointer that
// "may be null" leaves its term out. Rows may alias where the operation's contract lets them, but
// only exactly. Inputs must be finite; sums are float, in a fixed order for a given length.
namespace lapidary::ops::cpu {

// --- simd_norm.cpp: X, Y, G = float or bf16, in any combination; weights are widened beforehand
// sum_j x_j^2
template <class X>
float sum_squares(const X* x, int64_t n);
// y = [residual +] x r [w];  w, residual may be null
template <class X, class Y>
void norm_row(const X* x, const float* w, const Y* residual, Y* y, int64_t n, float r);
// Returns sum_j dy_j w_j x_j, and dw_j += dy_j x_j r;  w, dw may be null
template <class X, class Y>
float norm_bwd_sums(const Y* dy, const X* x, const float* w, float* dw, int64_t n, float r);
// dx = r (dy w - x r mean) [+ dx];  w may be null
template <class X, class Y, class G>
void norm_bwd_row(const Y* dy, const X* x, const float* w, G* dx, int64_t n, float r, float mean,
                  bool accumulate);

// --- simd_rope.cpp: a row is one head, 2 half channels
template <class X>
void norm_rope_row(const X* x, const X* w, const float* cos, const float* sin, X* y, int64_t half,
                   float r);
// With du = inverse rotation of dy: returns sum_j du_j w_j x_j, and dw_j += du_j x_j r
template <class X, class Y>
float norm_rope_bwd_sums(const Y* dy, const X* x, const X* w, const float* cos, const float* sin,
                         float* dw, int64_t half, float r);
// dx = r (du w - x r mean) [+ dx]
template <class X, class Y>
void norm_rope_bwd_row(const Y* dy, const X* x, const X* w, const float* cos, const float* sin,
                       X* dx, int64_t half, float r, float mean, bool accumulate);

// --- simd_glu.cpp
template <class T>
void geglu_row(const T* gate, const T* up, T* h, int64_t n, float weight);
// Returns sum_j dh g(gate) up
template <class T>
float geglu_bwd_row(const T* dh, const T* gate, const T* up, T* dgate, T* dup, int64_t n,
                    float weight, bool accumulate_dup);

// --- simd_elementwise.cpp
// out = alpha a [+ beta b];  b may be null
template <class A, class B, class O>
void axpby_row(const A* a, const B* b, O* out, int64_t n, float alpha, float beta);
// sum_j x_j^2 in double
template <class T>
double sum_squares_double(const T* x, int64_t n);
// sum_j a_j b_j
template <class T>
float dot_row(const T* a, const T* b, int64_t n);
// z = cap tanh(z / cap)
template <class T>
void softcap_row(T* z, int64_t n, float cap);

// --- simd_adamw.cpp
// master may be null: param is the master
template <class T>
void adamw_row(T* param, float* master, const float* grad, float* m, float* v, int64_t n,
               const AdamWStep& step);
// max_j |x_j|
float largest_magnitude(const float* x, int64_t n);
// x = scale values[codes];  values [256] of a table of quantize.h
void decode_row(const uint8_t* codes, const float* values, float scale, float* x, int64_t n);
// The codes of x inverse, in [-1, 1] or [0, 1]
void encode_signed(const float* x, float inverse, uint8_t* codes, int64_t n);
void encode_unsigned(const float* x, float inverse, uint8_t* codes, int64_t n);
// Random bits of the kQuantBlock elements that begin at the one with this rounding_counter()
void rounding_block(uint64_t seed, uint64_t stream, uint64_t counter, uint16_t* random);
// out = x, rounded at random
void round_row(const float* x, const uint16_t* random, bf16* out, int64_t n);

// --- simd_softmax.cpp: visible [n] (1 = visible) may be null: all are
constexpr float kLowest = -3.0e38F;  // below every score; stands for "none"
// max_j scale s_j over the visible j; kLowest when there is none
float max_row(const float* s, int64_t n, float scale, const uint8_t* visible);
// p_j = exp(scale s_j - top), 0 where invisible (rounded to T); returns their sum before rounding
template <class T>
float exp_row(const float* s, T* p, int64_t n, float scale, float top, const uint8_t* visible);
// p_j = exp(scale s_j - lse), ds_j = scale p_j (dp_j - delta), 0 where invisible. p may be s and
// ds may be dp.
template <class T>
void softmax_bwd_row(const float* s, const float* dp, T* p, T* ds, int64_t n, float scale,
                     float lse, float delta, const uint8_t* visible);
// sum_j exp(z_j - top), in double over blocks
double exp_sum(const float* z, int64_t n, float top);
// dl_j = factor exp(z_j - lse) (1 - z_j^2 inverse_cap^2), written over z as T from its start
template <class T>
void cross_entropy_bwd_row(float* z, int64_t n, float lse, float factor, float inverse_cap);

// visible_j = 1 for first <= j < last, else 0 (j counts from 0)
void range_bytes(uint8_t* visible, int64_t n, int64_t first, int64_t last);
// visible_j &= (keys_j == key)
void and_equal(uint8_t* visible, const int32_t* keys, int32_t key, int64_t n);
// visible_j |= (keys_j == key)
void or_equal(uint8_t* visible, const int32_t* keys, int32_t key, int64_t n);
// visible_j &= (valid_j != 0)
void and_valid(uint8_t* visible, const uint8_t* valid, int64_t n);
// Number of ones.
int64_t count_visible(const uint8_t* visible, int64_t n);

}  // namespace lapidary::ops::cpu
