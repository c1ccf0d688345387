/* What a training step on a CPU spends its time on: layers in a row, forward and backward (convolutions with kernel 4,
 * stride 2, padding 1, or kernel 2 and none; their transposes; linear layers), the Bernoulli likelihood, and the steps of
 * optimizers; on float32 images with channels last.
 *
 * Both kinds of convolutions join a large image l (2h x 2w, Cl channels) and a small one s (h x w, Cs channels) by the same weights
 * W[Cs][4][4][Cl]: `down` makes s of l (a convolution), `up` makes l of s (its transpose), and the gradients of each
 * are the other one and the outer product of the two images. With 2 x 2 blocks of l's pixels, l padded by one, taken
 * as 4 Cl channels, it is a 2 x 2 convolution of stride 1, and Winograd's minimal filtering F(2 x 2, 2 x 2) does that
 * with 9 products instead of 16 (S. Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray 2015,
 * arXiv:1509.09308). In either direction
 *
 *     y0 = d0 g0 + d1 g1 = (d0 - d1) g0 + d1 (g0 + g1)          y1 = d1 g0 + d2 g1 = d1 (g0 + g1) + (d2 - d1) g1
 *
 * Its coefficients are 0, 1 and -1, so the rounding stays that of a sum of products. The three products of training
 * are, for each of the 9: M = V W (down), V = U W' (up) and W = U' V, where V holds the transformed blocks of large
 * images and U the transformed tiles of small ones. Large images with up to 4 channels go
 * without all that (`direct`), and so do kernels of 2 without padding. Linear layers pass over the vectors of their
 * input that are all 0, where most are: sprites and digits are black nearly everywhere.
 *
 * Everything is done image by image (or a few small ones together), so that what is between the steps stays in the
 * second cache, and each thread has images of its own. Sums over images are made per thread and added in order: the
 * result depends on the number of threads, and on nothing else.
 */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include <immintrin.h>

#ifdef __AVX512F__
#define VL 16 /* floats in a vector */
#define MB 8  /* rows of a block of the product that is kept in registers */
#else
#define VL 8
#define MB 4
#endif
#define NV 2     /* vectors across such a block */
#define TILES 64 /* tiles that go through the products together */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int ints __attribute__((vector_size(4 * VL), aligned(4), may_alias));
#define LOAD(p) (*(const vec *)(p))
#define STORE(p, v) (*(vec *)(p) = (v))

typedef struct {
    long n, h, w, cs, cl; /* images; size of the small image; channels of the small and of the large one */
    long kernel;          /* 4, or 2, which needs no padding */
} Shape;

typedef struct {
    const float *l, *s;     /* what comes in: images, or the gradient by those that went out */
    const float *kept;      /* backward of a layer with ReLU: what it put out */
    const float *w, *bias;  /* bias may be NULL */
    float *out, *gw, *gb;   /* backward: out and gb may be NULL where not wanted */
    int relu, bf16, threads;
    int before;             /* backward: what the input came out of; its gradient goes through that, too */
} Call;

enum { DOWN, UP, DOWN_BACKWARD, UP_BACKWARD };

INLINE void put(const int bf16, float *to, long at, vec x) { /* element `at` and on; `at` counts halves with bf16 */
#ifdef __AVX512BF16__
    if (bf16) {
        _mm256_storeu_si256((__m256i *)((short *)to + at), (__m256i)_mm512_cvtneps_pbh((__m512)x));
        return;
    }
#endif
    STORE(to + at, x);
}

INLINE vec unless(ints lanes, vec x) { return (vec)((ints)x & ~lanes); } /* 0 in these lanes */

INLINE void stream(float *p, vec x) {
#ifdef __AVX512F__
    _mm512_stream_ps(p, (__m512)x);
#else
    _mm256_stream_ps(p, (__m256)x);
#endif
}

static float *room(long count) { /* aligned to a cache line; NULL if there is none */
    return aligned_alloc(64, (count * sizeof(float) + 64) / 64 * 64);
}

static float *zeros(long count) {
    float *p = room(count);
    if (p) memset(p, 0, count * sizeof(float));
    return p;
}

/* ------------------------------------------------------------------------------------------ elementary functions */

INLINE vec choose(ints lanes, vec yes, vec no) { return (vec)(((ints)yes & lanes) | ((ints)no & ~lanes)); }
INLINE vec magnitude(vec x) { return (vec)((ints)x & 0x7fffffff); }

/* exp(x) for x <= 0 to 1 in 10^7, and 0 below -87: x = n ln 2 + r, and e^r by its Taylor series, |r| < 0.35. */
INLINE vec exp_of_negative(vec x) {
    const vec shift = (vec){0} + 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    const vec n = (x * 1.442695041f + shift) - shift;
    const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts, the first of few bits */
    vec y = (vec){0} + 1.0f / 5040;
    y = y * r + 1.0f / 720, y = y * r + 1.0f / 120, y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6, y = y * r + 0.5f, y = y * r + 1.0f, y = y * r + 1.0f;
    const ints power = (__builtin_convertvector(n, ints) + 127) << 23;
    return unless(x < -87.0f, y * (vec)power);
}

/* log(1 + e) for 0 <= e <= 1: 2 artanh(e / (2 + e)) by its series, whose argument is at most 1/3. */
INLINE vec log1p_of_share(vec e) {
    const vec s = e / (2.0f + e), t = s * s;
    vec y = (vec){0} + 2.0f / 15;
    y = y * t + 2.0f / 13, y = y * t + 2.0f / 11, y = y * t + 2.0f / 9;
    y = y * t + 2.0f / 7, y = y * t + 2.0f / 5, y = y * t + 2.0f / 3, y = y * t + 2.0f;
    return y * s;
}

/* tanh: 1 - 2 / (e^2x + 1), near 0 its Taylor series, which keeps the digits. */
INLINE vec tanh_of(vec x) {
    const vec size = magnitude(x), e = exp_of_negative(-2.0f * size), t = x * x;
    const vec far = (1.0f - e) / (1.0f + e);
    vec near = (vec){0} + 21844.0f / 6081075;
    near = near * t - 1382.0f / 155925, near = near * t + 62.0f / 2835, near = near * t - 17.0f / 315;
    near = near * t + 2.0f / 15, near = near * t - 1.0f / 3, near = near * t + 1.0f;
    return choose(size < 0.4f, near * x, (vec)((ints)far | ((ints)x & (int)0x80000000)));
}

static float total(vec x) {
    float lane[VL];
    STORE(lane, x);
    for (int half = VL / 2; half; half /= 2)
        for (int e = 0; e < half; e++) lane[e] += lane[e + half];
    return lane[0];
}

/* What follows a layer. */
enum { NOTHING, RELU, TANH };

/* The gradient before it, from that after it and what it put out. */
INLINE vec through(int after, vec out, vec g) {
    if (after == TANH) return g * (1.0f - out * out);
    return after == RELU ? (vec)((ints)g & ~(out <= 0)) : g;
}

INLINE float through_one(int after, float out, float g) {
    if (after == TANH) return g * (1.0f - out * out);
    return after == RELU && out <= 0 ? 0 : g;
}

/* ------------------------------------------------------------------------------------------------------- products */

/* C[m][n] = start[n], or C[m][n] where `add`, + sum over segments and k of A[m am + k ak + segment sa] B[k + ..][n].
 * With bf16, elements of A and B are 32-bit words of two bfloat16 each, neighbours along k. Where `fours` is not 0, it
 * is the way from one four of A's rows to the next, in place of 4 am. */
typedef struct {
    const float *a, *b;
    long am, fours, ak, sa, ldb, segments, k;
    float *c;
    long ldc;
    const float *start;
    const float *next;     /* what is needed afterwards and is brought near meanwhile, or NULL: for each segment a row, */
    long pitch, each;      /* this far from one to the next, of which each k takes so many floats */
    float *squares;        /* [VL], to which the squares of C are added; or NULL */
    int add, relu, stream; /* stream: past the caches, into whole lines of them */
} Product;

INLINE vec multiply(const int bf16, vec sum, const float *a, vec b) {
#ifdef __AVX512BF16__
    int word;
    memcpy(&word, a, sizeof word);
    if (bf16) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(word), (__m512bh)b);
#endif
    return sum + *a * b;
}

INLINE void block(const int bf16, const int more, const int mb, const int nv, const Product p, long m, long n) {
    const long fours = p.fours ? p.fours : 4 * p.am;
    const float *a = p.a + m / 4 * fours + m % 4 * p.am, *b = p.b + n;
    float *c = p.c + m * p.ldc + n;
    vec sum[MB][NV];
#pragma GCC unroll 8
    for (int i = 0; i < mb; i++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            sum[i][v] = (vec){0};
            if (p.add) sum[i][v] = LOAD(c + i * p.ldc + v * VL);
            else if (p.start) sum[i][v] = LOAD(p.start + n + v * VL);
        }
    for (long s = 0; s < p.segments; s++, a += p.sa) {
        const float *ak = a, *next = more && p.next ? p.next + (n / (NV * VL) * p.segments + s) * p.pitch : 0;
        for (long k = 0; k < p.k; k++, ak += p.ak, b += p.ldb) {
            if (next) __builtin_prefetch(next + k * p.each, 0, 2);
            vec bv[NV];
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) bv[v] = LOAD(b + v * VL);
#pragma GCC unroll 8
            for (int i = 0; i < mb; i++)
#pragma GCC unroll 2
                for (int v = 0; v < nv; v++)
                    sum[i][v] = multiply(bf16, sum[i][v], ak + i / 4 * fours + i % 4 * p.am, bv[v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < mb; i++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++)
            if (p.stream) stream(c + i * p.ldc + v * VL, sum[i][v]);
            else STORE(c + i * p.ldc + v * VL, p.relu ? unless(sum[i][v] < 0, sum[i][v]) : sum[i][v]);
    if (!more || !p.squares) return;
    vec squares = LOAD(p.squares);
#pragma GCC unroll 8
    for (int i = 0; i < mb; i++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) squares += sum[i][v] * sum[i][v];
    STORE(p.squares, squares);
}

/* `columns`: a multiple of 16. `more`: whether p has `next` or `squares`, of which the inmost loop need not think else;
 * only linear layers do, and take eight rows at a time. */
INLINE void product(const int bf16, const int more, const Product p, long rows, long columns) {
    for (long n = 0; n < columns; n += NV * VL) {
        long m = 0;
#define BLOCKS(size)                                                      \
    for (; m + size <= rows; m += size)                                   \
        if (columns - n >= NV * VL) block(bf16, more, size, NV, p, m, n); \
        else block(bf16, more, size, 1, p, m, n);
        BLOCKS(MB)
        if (more) continue;
        BLOCKS(4)
        BLOCKS(1)
#undef BLOCKS
    }
}

INLINE void either(const int bf16, const Product p, long rows, long columns) {
    if (p.next || p.squares) product(bf16, 1, p, rows, columns);
    else product(bf16, 0, p, rows, columns);
}

/* The ways in which A is read, each with its stride known to the compiler. */
static void rows_fp32(Product p, long rows, long columns) { p.ak = 1, either(0, p, rows, columns); }
static void columns_fp32(Product p, long rows, long columns) { p.am = 1, either(0, p, rows, columns); }
#ifdef __AVX512BF16__
static void rows_bf16(Product p, long rows, long columns) { p.ak = 1, either(1, p, rows, columns); }
static void columns_bf16(Product p, long rows, long columns) { p.am = 1, either(1, p, rows, columns); }

/* x[rows][columns] to words of neighbours in a column, to[rows / 2][columns]; from float32 and from bfloat16. */
static void pair_floats(const float *x, long pitch, long rows, long columns, float *to) {
    for (long r = 0; r < rows; r += 2, x += 2 * pitch, to += columns)
        for (long i = 0; i < columns; i += 16) {
            const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)LOAD(x + i)));
            const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)LOAD(x + pitch + i)));
            _mm512_storeu_si512(to + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

static void pair_halves(const float *x, long rows, long columns, float *to) {
    for (long r = 0; r < rows; r += 2, x += columns, to += columns)
        for (long i = 0; i < columns; i += 16) {
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(x + i / 2)));
            const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(x + columns / 2 + i / 2)));
            _mm512_storeu_si512(to + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}
#endif

int has_bf16(void) {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

/* ----------------------------------------------------------------------------------------------------- transforms */

typedef struct {
    Shape s;
    long th, tw, tiles; /* tiles of 2 x 2 small pixels: down, across, in an image */
    long group, t;      /* images that go together, and their tiles, rounded up to MB */
    long pitch, rows;   /* of the padded large image: floats in a row, rows */
    long k;             /* 4 Cl */
    long pad;           /* pixels around the large image */
    long uplane, vplane; /* from one of the 9 to the next; no power of 2, which the caches dislike */
} Plan;

static Plan plan(Shape s) {
    Plan p = {.s = s, .th = (s.h + 1) / 2, .tw = (s.w + 1) / 2, .k = 4 * s.cl, .pad = 1};
    p.tiles = p.th * p.tw;
    p.group = p.tiles >= TILES ? 1 : TILES / p.tiles;
    p.t = (p.group * p.tiles + MB - 1) / MB * MB;
    p.pitch = 2 * (2 * p.tw + 1) * s.cl;
    p.rows = 2 * (2 * p.th + 1);
    p.uplane = p.t * s.cs + 64, p.vplane = p.t * p.k + 64;
    return p;
}

/* Weights into the 9 products' form: wt[9][Cs][4 Cl] and, if wanted, its transpose wf[9][4 Cl][Cs]. */
static void weights_in(const Plan *p, const float *w, float *wt, float *wf) {
    const long cl = p->s.cl, cs = p->s.cs, k = p->k;
#pragma omp for schedule(static)
    for (long c = 0; c < cs; c++)
        for (long r = 0; r < 2; r++)
            for (long q = 0; q < 2; q++)
                for (long e = 0; e < cl; e += VL) {
                    vec g[2][2], rowed[3][2];
                    for (int a = 0; a < 2; a++)
                        for (int b = 0; b < 2; b++)
                            g[a][b] = LOAD(w + ((c * 4 + 2 * a + r) * 4 + 2 * b + q) * cl + e);
                    for (int b = 0; b < 2; b++)
                        rowed[0][b] = g[0][b], rowed[1][b] = g[0][b] + g[1][b], rowed[2][b] = g[1][b];
                    for (int f = 0; f < 3; f++) {
                        const vec all[3] = {rowed[f][0], rowed[f][0] + rowed[f][1], rowed[f][1]};
                        for (int h = 0; h < 3; h++) {
                            const long at = (r * 2 + q) * cl + e;
                            STORE(wt + ((f * 3 + h) * cs + c) * k + at, all[h]);
                        }
                    }
                }
    if (!wf) return;
#pragma omp for schedule(static)
    for (long fk = 0; fk < 9 * k / 16; fk++) { /* 16 rows of the transpose at a time */
        const long f = fk / (k / 16), k0 = fk % (k / 16) * 16;
        for (long c0 = 0; c0 < cs; c0 += 16) {
            float block[16][16];
            for (int i = 0; i < 16; i++) memcpy(block[i], wt + (f * cs + c0 + i) * k + k0, sizeof block[i]);
            for (int j = 0; j < 16; j++)
                for (int i = 0; i < 16; i++) wf[(f * k + k0 + j) * cs + c0 + i] = block[i][j];
        }
    }
}

/* The gradient back: gw[Cs][4][4][Cl] from parts[thread][9][Cs][4 Cl]. */
static void weights_out(const Plan *p, const float *parts, long threads, float *gw) {
    const long cl = p->s.cl, cs = p->s.cs, k = p->k, size = 9 * cs * k;
#pragma omp for schedule(static)
    for (long c = 0; c < cs; c++)
        for (long r = 0; r < 2; r++)
            for (long q = 0; q < 2; q++)
                for (long e = 0; e < cl; e += VL) {
                    vec m[3][3], rowed[2][3];
                    for (int f = 0; f < 9; f++) {
                        const float *at = parts + (f * cs + c) * k + (r * 2 + q) * cl + e;
                        vec sum = LOAD(at);
                        for (long t = 1; t < threads; t++) sum += LOAD(at + t * size);
                        m[f / 3][f % 3] = sum;
                    }
                    for (int h = 0; h < 3; h++)
                        rowed[0][h] = m[0][h] + m[1][h], rowed[1][h] = m[1][h] + m[2][h];
                    for (int a = 0; a < 2; a++)
                        for (int b = 0; b < 2; b++)
                            STORE(gw + ((c * 4 + 2 * a + r) * 4 + 2 * b + q) * cl + e, rowed[a][b] + rowed[a][b + 1]);
                }
}

/* The inside of a padded large image: with a bias and a ReLU if wanted, or as the gradient by an image that came out of
 * `before`, which it may overwrite. */
static void unpad(const Plan *p, const float *padded, const float *bias, int relu, int before, const float *image,
                  float *l) {
    const long cl = p->s.cl, row = 2 * p->s.w * cl;
    for (long i = 0; i < 2 * p->s.h; i++, image += row, l += row) {
        const float *from = padded + (i + p->pad) * p->pitch + p->pad * cl;
        if (cl % VL == 0)
            for (long j = 0; j < row; j += cl)
                for (long e = 0; e < cl; e += VL) {
                    vec y = LOAD(from + j + e);
                    if (bias) y += LOAD(bias + e);
                    if (before) y = through(before, LOAD(image + j + e), y);
                    STORE(l + j + e, relu ? unless(y < 0, y) : y);
                }
        else if (before)
            for (long j = 0; j < row; j++) l[j] = through_one(before, image[j], from[j]);
        else
            for (long j = 0; j < row; j++) {
                const float y = from[j] + (bias ? bias[cl == 1 ? 0 : j % cl] : 0);
                l[j] = relu && y < 0 ? 0 : y;
            }
    }
}

/* v[9][t][4 Cl] of one large image, its tiles from number `first` on. Where the output `kept` was 0, a ReLU lets no
 * gradient through. Adds the sum of every channel to `sums`, image by image, which keeps the digits of long sums. */
INLINE void blocks_in(const int bf16, const Plan *p, const float *l, const float *kept, float *v, long first,
                      float *sums) {
    const long cl = p->s.cl, k = p->k, plane = p->vplane, height = 2 * p->s.h, width = 2 * p->s.w;
    float sum[cl];
    memset(sum, 0, sizeof sum);
    for (long i = 0; i < p->th; i++)
        for (long j = 0; j < p->tw; j++)
            for (long r = 0; r < 2; r++)
                for (long q = 0; q < 2; q++) {
                    const long y = 4 * i + r - 1, x = 4 * j + q - 1; /* the first of 3 x 3 pixels, two apart */
                    const long to = (first + i * p->tw + j) * k + (r * 2 + q) * cl;
                    for (long e = 0; e < cl; e += VL) {
                        vec d[3][3];
#pragma GCC unroll 3
                        for (int a = 0; a < 3; a++)
#pragma GCC unroll 3
                            for (int b = 0; b < 3; b++) {
                                const long row = y + 2 * a, column = x + 2 * b, at = (row * width + column) * cl + e;
                                d[a][b] = (vec){0};
                                if (a < 2 && b < 2) { /* what the tile below will want, or the next image, if any */
                                    __builtin_prefetch(l + at + 4 * width * cl);
                                    if (kept) __builtin_prefetch(kept + at + 4 * width * cl);
                                }
                                if (row < 0 || row >= height || column < 0 || column >= width) continue;
                                d[a][b] = LOAD(l + at);
                                if (kept) d[a][b] = unless(LOAD(kept + at) <= 0, d[a][b]);
                            }
                        if (sums) { /* what no next tile has */
                            vec all = d[0][0] + d[0][1] + d[1][0] + d[1][1];
                            if (i == p->th - 1) all += d[2][0] + d[2][1];
                            if (j == p->tw - 1) all += d[0][2] + d[1][2];
                            if (i == p->th - 1 && j == p->tw - 1) all += d[2][2];
                            STORE(sum + e, LOAD(sum + e) + all);
                        }
#pragma GCC unroll 3
                        for (int b = 0; b < 3; b++) d[0][b] -= d[1][b], d[2][b] -= d[1][b];
#pragma GCC unroll 3
                        for (int f = 0; f < 3; f++) {
                            put(bf16, v + (3 * f + 0) * plane, to + e, d[f][0] - d[f][1]);
                            put(bf16, v + (3 * f + 1) * plane, to + e, d[f][1]);
                            put(bf16, v + (3 * f + 2) * plane, to + e, d[f][2] - d[f][1]);
                        }
                    }
                }
    if (sums)
        for (long e = 0; e < cl; e++) sums[e] += sum[e];
}

/* The transpose of that, without a mask: one image's share of all tiles, in a padded place. */
static void blocks_out(const Plan *p, const float *v, long first, float *padded) {
    const long cl = p->s.cl, k = p->k, plane = p->vplane;
    for (long i = 0; i < p->th; i++)
        for (long j = 0; j < p->tw; j++)
            for (long r = 0; r < 2; r++)
                for (long e = 0; e < 2 * cl; e += VL) {
                    float *to = padded + (4 * i + r) * p->pitch + 4 * j * cl + e;
                    const float *from = v + (first + i * p->tw + j) * k + r * 2 * cl + e;
                    vec m[3][3];
#pragma GCC unroll 3
                    for (int f = 0; f < 3; f++) {
                        m[f][0] = LOAD(from + 3 * f * plane), m[f][2] = LOAD(from + (3 * f + 2) * plane);
                        m[f][1] = LOAD(from + (3 * f + 1) * plane) - m[f][0] - m[f][2];
                    }
#pragma GCC unroll 3
                    for (int b = 0; b < 3; b++) m[1][b] -= m[0][b] + m[2][b];
#pragma GCC unroll 3
                    for (int a = 0; a < 3; a++)
#pragma GCC unroll 3
                        for (int b = 0; b < 3; b++) { /* the first row and column of blocks were another tile's too */
                            float *at = to + 2 * a * p->pitch + 2 * b * cl;
                            if ((a == 0 && i > 0) || (b == 0 && j > 0)) m[a][b] += LOAD(at);
                            STORE(at, m[a][b]);
                        }
                }
}

/* u[9][t][Cs] of one small image; the rest as in blocks_in. */
INLINE void tiles_in(const int bf16, const Plan *p, const float *s, const float *kept, float *u, long first,
                     float *sums) {
    const long cs = p->s.cs, h = p->s.h, w = p->s.w, plane = p->uplane;
    float sum[cs];
    memset(sum, 0, sizeof sum);
    for (long i = 0; i < p->th; i++)
        for (long j = 0; j < p->tw; j++)
            for (long e = 0; e < cs; e += VL) {
                vec y[2][2], rowed[3][2];
                const long to = (first + i * p->tw + j) * cs + e;
                for (int a = 0; a < 2; a++)
                    for (int b = 0; b < 2; b++) {
                        y[a][b] = (vec){0};
                        if (2 * i + a >= h || 2 * j + b >= w) continue;
                        const long at = ((2 * i + a) * w + 2 * j + b) * cs + e;
                        y[a][b] = LOAD(s + at);
                        if (kept) y[a][b] = unless(LOAD(kept + at) <= 0, y[a][b]);
                    }
                STORE(sum + e, LOAD(sum + e) + (y[0][0] + y[0][1]) + (y[1][0] + y[1][1]));
                for (int b = 0; b < 2; b++)
                    rowed[0][b] = y[0][b], rowed[1][b] = y[0][b] + y[1][b], rowed[2][b] = y[1][b];
                for (int f = 0; f < 3; f++) {
                    put(bf16, u + (3 * f + 0) * plane, to, rowed[f][0]);
                    put(bf16, u + (3 * f + 1) * plane, to, rowed[f][0] + rowed[f][1]);
                    put(bf16, u + (3 * f + 2) * plane, to, rowed[f][1]);
                }
            }
    if (sums)
        for (long e = 0; e < cs; e++) sums[e] += sum[e];
}

/* One small image from m[9][t][Cs]; the rest as in `unpad`. */
static void tiles_out(const Plan *p, const float *m, long first, const float *bias, int relu, int before,
                      const float *image, float *s) {
    const long cs = p->s.cs, h = p->s.h, w = p->s.w, plane = p->uplane;
    for (long i = 0; i < p->th; i++)
        for (long j = 0; j < p->tw; j++)
            for (long e = 0; e < cs; e += VL) {
                const float *from = m + (first + i * p->tw + j) * cs + e;
                const vec start = bias ? LOAD(bias + e) : (vec){0};
                vec rowed[2][3];
                for (int f = 0; f < 3; f++) {
                    const vec middle = LOAD(from + (3 + f) * plane);
                    rowed[0][f] = LOAD(from + f * plane) + middle, rowed[1][f] = middle + LOAD(from + (6 + f) * plane);
                }
                for (int a = 0; a < 2; a++)
                    for (int b = 0; b < 2; b++) {
                        if (2 * i + a >= h || 2 * j + b >= w) continue;
                        const long at = ((2 * i + a) * w + 2 * j + b) * cs + e;
                        vec y = rowed[a][b] + rowed[a][b + 1] + start;
                        if (before) y = through(before, LOAD(image + at), y);
                        STORE(s + at, relu ? unless(y < 0, y) : y);
                    }
            }
}

/* ---------------------------------------------------------------------------------------------------- the two kinds */

/* What the threads share. */
typedef struct {
    float *wt, *wf;       /* weights for `up` and for `down` */
    float *pairs;         /* those that are needed as bfloat16 */
    float *parts, *sums;  /* gradients of weights and bias, a part for each thread */
    long size, channels;  /* floats in each part */
    int back, down, failed;
} Shared;

static Shared share(int pass, const Call *c, long wt, long wf, long channels) {
    Shared x = {.size = wt > wf ? wt : wf, .channels = channels, .back = pass >= DOWN_BACKWARD};
    x.down = pass == DOWN || pass == UP_BACKWARD; /* what is put out is small */
    x.wt = room(wt), x.wf = room(wf), x.pairs = room(c->bf16 ? wt / 2 : 0);
    if (x.back) x.parts = zeros(c->threads * x.size), x.sums = zeros(c->threads * channels);
    x.failed = !x.wt || !x.wf || !x.pairs || (x.back && (!x.parts || !x.sums));
    return x;
}

static int finish(Shared *x, const Call *c) {
    if (!x->failed && x->back && c->gb)
        for (long e = 0; e < x->channels; e++) {
            c->gb[e] = 0;
            for (long t = 0; t < c->threads; t++) c->gb[e] += x->sums[t * x->channels + e];
        }
    free(x->wt), free(x->wf), free(x->pairs), free(x->parts), free(x->sums);
    return x->failed;
}

/* One of the passes, for numbers of channels that are multiples of 16. Returns 1 if memory ran out, else 0.
 *     DOWN            l -> out = relu(W l + bias)       DOWN_BACKWARD   l, gradient s, kept -> out (by l), gw, gb
 *     UP              s -> out = relu(W' s + bias)      UP_BACKWARD     s, gradient l, kept -> out (by s), gw, gb */
static int wide(int pass, Shape shape, Call c) {
    const Plan plan_ = plan(shape), *p = &plan_;
    const long k = p->k, cs = shape.cs, small = shape.h * shape.w * cs, large = shape.h * shape.w * k;
    const long groups = (shape.n + p->group - 1) / p->group;
    if (c.threads > groups) c.threads = groups;
    Shared x = share(pass, &c, 9 * cs * k, 9 * cs * k, pass == DOWN_BACKWARD ? cs : shape.cl);
    if (x.failed) return finish(&x, &c);
#pragma omp parallel num_threads(c.threads)
    {
        const long me = omp_get_thread_num();
        float *padded = room(p->rows * p->pitch), *u = room(9 * p->uplane), *v = room(9 * p->vplane);
        float *uw = room(c.bf16 ? p->t * cs / 2 : 0), *vw = room(c.bf16 ? p->t * k / 2 : 0);
        float *part = x.back ? x.parts + me * x.size : 0, *sums = x.back ? x.sums + me * x.channels : 0;
        if (!padded || !u || !v || !uw || !vw)
#pragma omp atomic write
            x.failed = 1;
#pragma omp barrier
        if (!x.failed) {
            weights_in(p, c.w, x.wt, x.down ? x.wf : 0);
#ifdef __AVX512BF16__
            const float *w = x.down ? x.wf : x.wt;
            const long rows = x.down ? k : cs, columns = x.down ? cs : k;
            if (c.bf16)
#pragma omp for schedule(static)
                for (long f = 0; f < 9; f++)
                    pair_floats(w + f * rows * columns, columns, rows, columns, x.pairs + f * rows * columns / 2);
#endif
#pragma omp for schedule(static)
            for (long g = 0; g < groups; g++) {
                const long first = g * p->group, count = shape.n - first < p->group ? shape.n - first : p->group;
                const long tiles = count * p->tiles, t = (tiles + MB - 1) / MB * MB;
                for (long i = 0; i < count; i++) {
                    const long n = first + i;
                    if (pass != UP) {
                        const int gradient = pass == UP_BACKWARD;
                        const float *kept = gradient && c.kept ? c.kept + n * large : 0;
                        if (c.bf16) blocks_in(1, p, c.l + n * large, kept, v, i * p->tiles, gradient ? sums : 0);
                        else blocks_in(0, p, c.l + n * large, kept, v, i * p->tiles, gradient ? sums : 0);
                    }
                    if (pass != DOWN) {
                        const int gradient = pass == DOWN_BACKWARD;
                        const float *kept = gradient && c.kept ? c.kept + n * small : 0;
                        if (c.bf16) tiles_in(1, p, c.s + n * small, kept, u, i * p->tiles, gradient ? sums : 0);
                        else tiles_in(0, p, c.s + n * small, kept, u, i * p->tiles, gradient ? sums : 0);
                    }
                }
                for (int f = 0; f < 9; f++) {
                    float *uf = u + f * p->uplane, *vf = v + f * p->vplane;
                    const float *w = (x.down ? x.wf : x.wt) + f * cs * k;
                    /* Rows that only fill up, where a bigger group may have left something. */
                    const long bytes = c.bf16 ? sizeof(short) : sizeof(float);
                    memset((char *)uf + tiles * cs * bytes, 0, (t - tiles) * cs * bytes);
                    memset((char *)vf + tiles * k * bytes, 0, (t - tiles) * k * bytes);
                    Product outer = {.a = uf, .ak = cs, .b = vf, .ldb = k, .segments = 1, .k = t,
                                     .c = part + f * cs * k, .ldc = k, .add = 1};
                    Product down = {.a = vf, .am = k, .b = w, .ldb = cs, .segments = 1, .k = k, .c = uf, .ldc = cs};
                    Product up = {.a = uf, .am = cs, .b = w, .ldb = k, .segments = 1, .k = cs, .c = vf, .ldc = k};
#ifdef __AVX512BF16__
                    if (c.bf16) {
                        if (x.back) {
                            pair_halves(uf, t, cs, uw), pair_halves(vf, t, k, vw);
                            outer.a = uw, outer.b = vw, outer.k = t / 2;
                            columns_bf16(outer, cs, k);
                        }
                        if (!c.out) continue;
                        down.b = up.b = x.pairs + f * cs * k / 2;
                        down.am = down.k = k / 2, up.am = up.k = cs / 2;
                        /* What is put out overwrites nothing that is still read: u and v are different places. */
                        if (x.down) rows_bf16(down, t, cs);
                        else rows_bf16(up, t, k);
                        continue;
                    }
#endif
                    if (x.back) columns_fp32(outer, cs, k);
                    if (!c.out) continue;
                    if (x.down) rows_fp32(down, t, cs);
                    else rows_fp32(up, t, k);
                }
                for (long i = 0; c.out && i < count; i++)
                    if (x.down) {
                        const long at = (first + i) * small;
                        tiles_out(p, u, i * p->tiles, c.bias, c.relu, c.before, c.s + at, c.out + at);
                    } else {
                        const long at = (first + i) * large;
                        blocks_out(p, v, i * p->tiles, padded);
                        unpad(p, padded, c.bias, c.relu, c.before, c.l + at, c.out + at);
                    }
            }
            if (x.back) weights_out(p, x.parts, c.threads, c.gw);
        }
        free(padded), free(u), free(v), free(uw), free(vw);
    }
    return finish(&x, &c);
}

/* A large image into its padded place; where the output `kept` was 0, a ReLU lets no gradient through. Adds the sum
 * of every channel to `sums`, row by row, which keeps the digits of long sums. */
static void pad(const Plan *p, const float *restrict l, const float *restrict kept, float *restrict padded,
                float *restrict sums) {
    const long cl = p->s.cl, row = 2 * p->s.w * cl;
    for (long i = 0; i < 2 * p->s.h; i++) {
        float *restrict to = padded + (i + p->pad) * p->pitch + p->pad * cl;
        if (!kept) memcpy(to, l + i * row, row * sizeof(float));
        else
            for (long e = 0; e < row; e++) to[e] = kept[i * row + e] <= 0 ? 0 : l[i * row + e];
        if (!sums) continue;
        if (cl == 1) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long e = 0; e < row; e++) sum += to[e];
            sums[0] += sum;
            continue;
        }
        float sum[cl];
        memset(sum, 0, sizeof sum);
        for (long j = 0; j < row; j += cl)
            for (long e = 0; e < cl; e++) sum[e] += to[j + e];
        for (long e = 0; e < cl; e++) sums[e] += sum[e];
    }
}

/* One row of small pixels, columns[w][kernel][kernel Cl], added to the padded rows that it reaches. Even pixels first,
 * odd ones after: neighbours may overlap, and what has just been stored is slow to read back. */
INLINE void spread(const long kernel, const long cl, const float *columns, long w, long pitch, float *to) {
    for (int odd = 0; odd < 2; odd++)
        for (long j = odd; j < w; j += 2)
            for (int y = 0; y < kernel; y++) {
                float *restrict at = to + y * pitch + 2 * j * cl;
                const float *restrict from = columns + (j * kernel + y) * kernel * cl;
                for (long e = 0; e < kernel * cl; e++) at[e] += from[e];
            }
}

/* As `wide`, by products with the patches themselves, always in float32: for large images of few channels, whose
 * blocks are no vectors, and for kernel 2, whose windows do not overlap. */
static int direct(int pass, Shape shape, Call c) {
    const long h = shape.h, w = shape.w, cl = shape.cl, cs = shape.cs;
    const long kernel = shape.kernel, piece = kernel * cl, width = kernel * piece;
    const long small = h * w * cs, large = 4 * h * w * cl, pad_ = (kernel - 2) / 2;
    const Plan plan_ = {.s = shape, .pitch = 2 * (w + pad_) * cl, .rows = 2 * (h + pad_), .pad = pad_}, *p = &plan_;
    const int one = piece == 4; /* all 16 rows of the outer product at once */
    if (c.threads > shape.n) c.threads = shape.n;
    Shared x = share(pass, &c, 0, width * cs, pass == DOWN_BACKWARD ? cs : cl);
    if (x.failed) return finish(&x, &c);
#pragma omp parallel for schedule(static) num_threads(c.threads)
    for (long i = 0; i < cs; i++)
        for (long e = 0; e < width; e++) x.wf[e * cs + i] = c.w[i * width + e];
#pragma omp parallel num_threads(c.threads)
    {
        const long me = omp_get_thread_num();
        float *padded = zeros(p->rows * p->pitch), *columns = room(w * width), *masked = room(small);
        float *part = x.back ? x.parts + me * x.size : 0, *sums = x.back ? x.sums + me * x.channels : 0;
        if (!padded || !columns || !masked)
#pragma omp atomic write
            x.failed = 1;
#pragma omp barrier
        if (!x.failed)
#pragma omp for schedule(static)
            for (long n = 0; n < shape.n; n++) {
                const float *image = pass == DOWN ? 0 : c.s + n * small;
                if (pass != UP) {
                    const int gradient = pass == UP_BACKWARD;
                    const float *kept = gradient && c.kept ? c.kept + n * large : 0;
                    pad(p, c.l + n * large, kept, padded, gradient ? sums : 0);
                }
                if (pass == DOWN_BACKWARD) {
                    float sum[cs];
                    memset(sum, 0, sizeof sum);
                    for (long e = 0; e < small; e += cs)
                        for (long i = 0; i < cs; i += VL) {
                            vec y = LOAD(image + e + i);
                            if (c.kept) y = unless(LOAD(c.kept + n * small + e + i) <= 0, y);
                            STORE(masked + e + i, y);
                            STORE(sum + i, LOAD(sum + i) + y);
                        }
                    for (long i = 0; i < cs; i++) sums[i] += sum[i];
                    image = masked;
                }
                for (int y = 0; x.back && y < kernel; y += one ? kernel : 1) {
                    Product outer = {.a = padded + y * p->pitch, .fours = one ? p->pitch : 0, .ak = 2 * cl,
                                     .segments = h, .sa = 2 * p->pitch, .k = w, .b = image, .ldb = cs,
                                     .c = part + y * piece * cs, .ldc = cs, .add = 1};
                    columns_fp32(outer, one ? width : piece, cs);
                }
                if (!c.out) continue;
                if (!x.down) memset(padded, 0, p->rows * p->pitch * sizeof(float));
                for (long i = 0; i < h; i++) {
                    float *rows = padded + 2 * i * p->pitch;
                    if (x.down) {
                        const long at = n * small + i * w * cs;
                        Product down = {.a = rows, .am = 2 * cl, .segments = kernel, .sa = p->pitch, .k = piece,
                                        .b = x.wf, .ldb = cs, .c = c.before ? masked : c.out + at, .ldc = cs,
                                        .start = c.bias, .relu = c.relu};
                        rows_fp32(down, w, cs);
                        for (long e = 0; c.before && e < w * cs; e += VL)
                            STORE(c.out + at + e, through(c.before, LOAD(c.s + at + e), LOAD(masked + e)));
                        continue;
                    }
                    Product up = {.a = image + i * w * cs, .am = cs, .segments = 1, .k = cs, .b = c.w, .ldb = width,
                                  .c = columns, .ldc = width};
                    rows_fp32(up, w, width);
                    if (kernel == 4 && cl == 1) spread(4, 1, columns, w, p->pitch, rows);
                    else if (kernel == 4 && cl == 3) spread(4, 3, columns, w, p->pitch, rows);
                    else spread(kernel, cl, columns, w, p->pitch, rows);
                }
                if (x.down) continue;
                unpad(p, padded, c.bias, c.relu, c.before, c.l + n * large, c.out + n * large);
                if (x.back) memset(padded, 0, p->rows * p->pitch * sizeof(float)); /* its border has to be 0 again */
            }
        free(padded), free(columns), free(masked);
    }
    if (!x.failed && x.back)
#pragma omp parallel for schedule(static) num_threads(c.threads)
        for (long i = 0; i < cs; i++)
            for (long e = 0; e < width; e++) {
                float sum = 0;
                for (long t = 0; t < c.threads; t++) sum += x.parts[t * x.size + e * cs + i];
                c.gw[i * width + e] = sum;
            }
    return finish(&x, &c);
}

/* -------------------------------------------------------------------------------------------------- linear layers */

/* y[m][n] = after(x[m][k] w[n][k]' + bias[n]). Numbers of columns are multiples of 16; rows are filled up to `m16`. */
typedef struct {
    const float *x, *w, *bias;
    const float *g, *kept;   /* backward: gradient by y; y itself where something followed */
    float *out, *gw, *gb;    /* y, or the gradient by x (NULL where not wanted); gb may be NULL */
    long m, n, k;
    double *squares;         /* where the sum of the squares of gw goes, if there is a place for it */
    int after, before, bf16, threads; /* before: what x came out of; its gradient goes through that, too */
} Linear;

enum { DEEP = 512, WIDE = 1024, SIDE = 128 }; /* pieces of the products that stay in the second cache */
enum { LARGE = 1 << 20 };                     /* weights that are no longer in a cache when they are read again */

/* 16 columns of x[m][columns] from `first` on, as rows: to[16][m16], filled up with 0. */
static void turn(const float *x, long m, long columns, long first, long m16, float *to) {
    for (long i = 0; i < m16; i++)
        for (long e = 0; e < 16; e++) to[e * m16 + i] = i < m ? x[i * columns + first + e] : 0;
}

/* The vectors of x that are not all 0, row by row. */
typedef struct {
    long *first;   /* row i has numbers first[i] to first[i + 1] */
    int *column;   /* where each begins */
    float *values;
    int few;       /* whether they are so few that it pays to go from one to the next */
} Sparse;

static Sparse sparse(const float *x, long m, long k) {
    const long most = m * k / VL / 4;
    Sparse s = {.first = aligned_alloc(64, (m * 8 + 72) / 64 * 64), .column = aligned_alloc(64, (most * 4 + 67) / 64 * 64)};
    s.values = room(most * VL + 1);
    if (!s.first || !s.column || !s.values) return s;
    long found = 0;
    vec none = {0};
    for (long i = 0; i < m; i++) {
        s.first[i] = found;
        for (long e = 0; e < k; e += VL) {
            long words[VL / 2], any = 0;
            memcpy(words, x + i * k + e, sizeof words);
            for (int word = 0; word < VL / 2; word++) any |= words[word];
            if (!any) continue;
            if (found == most) return s;
            s.column[found] = e;
            memcpy(s.values + found * VL, words, sizeof words);
            none += LOAD(s.values + found++ * VL) * 0.0f;
        }
    }
    s.first[m] = found, s.few = total(none) == 0; /* unless there is something that 0 times is not 0 */
    return s;
}

static void release(Sparse s) { free(s.first), free(s.column), free(s.values); }

enum { ROWS = 8 };

/* Columns `from` to `to` of the output y, of such an x. */
static void linear_sparse(const Linear *c, const Sparse *s, long from, long to) {
    for (long r = from; r < to; r += ROWS) {
        float start[ROWS]; /* with 0 times every weight: a weight that is no number must show, also where x is black */
        for (int j = 0; j < ROWS; j++) {
            vec none[4] = {{0}};
            const float *w = c->w + (r + j) * c->k;
            long e = 0;
            for (; e + 4 * VL <= c->k; e += 4 * VL)
                for (int q = 0; q < 4; q++) none[q] += LOAD(w + e + q * VL) * 0.0f;
            for (; e < c->k; e += VL) none[0] += LOAD(w + e) * 0.0f;
            start[j] = total((none[0] + none[1]) + (none[2] + none[3])) + (c->bias ? c->bias[r + j] : 0);
        }
        for (long i = 0; i < c->m; i++) {
            vec sum[ROWS] = {{0}};
            for (long b = s->first[i]; b < s->first[i + 1]; b++) {
                const vec x = LOAD(s->values + b * VL);
                const float *w = c->w + r * c->k + s->column[b];
#pragma GCC unroll 8
                for (int j = 0; j < ROWS; j++) sum[j] += x * LOAD(w + j * c->k);
            }
            for (int j = 0; j < ROWS; j++) {
                const float y = total(sum[j]) + start[j];
                c->out[i * c->n + r + j] = c->after == RELU && y < 0 ? 0 : y;
            }
        }
    }
}

/* Rows `from` to `to` of the gradient by the weights, each made in `row`; g[..][n] has gone through the ReLU. `squares`:
 * of every eight rows. */
static void outer_sparse(const Linear *c, const Sparse *s, const float *g, long from, long to, int past, float *row,
                         double *squares) {
    for (long r = from; r < to; r++) {
        memset(row, 0, c->k * sizeof(float));
        for (long i = 0; i < c->m; i++) {
            const float by = g[i * c->n + r];
            if (by == 0) continue;
            for (long b = s->first[i]; b < s->first[i + 1]; b++)
                STORE(row + s->column[b], LOAD(row + s->column[b]) + by * LOAD(s->values + b * VL));
        }
        vec sum = {0};
        float *gw = c->gw + r * c->k;
        for (long e = 0; e < c->k; e += VL) {
            const vec x = LOAD(row + e);
            sum += x * x;
            if (past) stream(gw + e, x);
            else STORE(gw + e, x);
        }
        squares[r / 8] += total(sum);
    }
}

/* In how many segments a product of `columns` columns brings eight rows near, all its blocks taken together. (The
 * processor by itself sees a pattern only in longer rows; asked for them all at once, it stands still.) */
static long shares_of(long columns) {
    const long blocks = (columns + NV * VL - 1) / (NV * VL);
    return blocks == 1 ? 8 : blocks < 4 ? 4 : blocks < 8 ? 2 : 1;
}

static void finish_linear(const Linear *c) {
    if (c->after != TANH) return;
#pragma omp parallel for schedule(static) num_threads(c->threads)
    for (long i = 0; i < c->m * c->n; i += 16)
        for (long v = 0; v < 16; v += VL) STORE(c->out + i + v, tanh_of(LOAD(c->out + i + v)));
}

static int linear(Linear c) {
    const long m16 = (c.m + 15) / 16 * 16, n = c.n, k = c.k;
    const Sparse few = sparse(c.x, c.m, k);
    if (few.few) {
#pragma omp parallel for schedule(static) num_threads(c.threads)
        for (long part = 0; part < c.threads; part++)
            linear_sparse(&c, &few, n / 16 * part / c.threads * 16, n / 16 * (part + 1) / c.threads * 16);
        finish_linear(&c), release(few);
        return 0;
    }
    release(few);
    float *xt = room(k * m16), *pairs = room(c.bf16 ? k * m16 / 2 : 0), *yt = room(n * m16);
    int failed = !xt || !pairs || !yt;
    if (!failed)
#pragma omp parallel num_threads(c.threads)
    {
        float *halves = room(8 * DEEP / 2);
        if (!halves)
#pragma omp atomic write
            failed = 1;
#pragma omp for schedule(static)
        for (long e = 0; e < k; e += 16) {
            turn(c.x, c.m, k, e, m16, xt + e * m16);
#ifdef __AVX512BF16__
            if (c.bf16) pair_floats(xt + e * m16, m16, 16, m16, pairs + e / 2 * m16);
#endif
        }
#pragma omp for schedule(static)
        for (long part = 0; part < c.threads; part++) {
            const long from = n / 16 * part / c.threads * 16, to = n / 16 * (part + 1) / c.threads * 16;
            for (long e = 0; e < k && !failed; e += DEEP)
                for (long r = from; r < to; r += 8) {
                    const long deep = k - e < DEEP ? k - e : DEEP, shares = shares_of(m16);
                    Product p = {.a = c.w + r * k + e, .am = k, .b = xt + e * m16, .ldb = m16, .segments = shares,
                                 .k = deep / shares, .sa = deep / shares, .c = yt + r * m16, .ldc = m16, .add = e > 0,
                                 .next = r + 8 < to ? c.w + (r + 8) * k + e : 0, .pitch = k, .each = shares};
#ifdef __AVX512BF16__
                    if (c.bf16) {
                        for (long i = 0; i < 8; i++)
                            for (long j = 0; j < deep; j += VL) put(1, halves + i * deep / 2, j, LOAD(p.a + i * k + j));
                        p.a = halves, p.am = deep / 2, p.b = pairs + e / 2 * m16;
                        p.k = p.sa = deep / 2 / shares, p.each = 2 * shares;
                        rows_bf16(p, 8, m16);
                        continue;
                    }
#endif
                    rows_fp32(p, 8, m16);
                }
            for (long i = 0; i < c.m; i++)
                for (long r = from; r < to; r++) {
                    const float y = yt[r * m16 + i] + (c.bias ? c.bias[r] : 0);
                    c.out[i * n + r] = c.after == RELU && y < 0 ? 0 : y;
                }
        }
        free(halves);
    }
    if (!failed) finish_linear(&c);
    free(xt), free(pairs), free(yt);
    return failed;
}

static void copy_rows(const float *from, long rows, long columns, float *to, long pitch) { /* the rest of `to` stays */
    for (long i = 0; i < rows; i++)
        memcpy(to + i * pitch, from + i * columns, (columns < pitch ? columns : pitch) * sizeof(float));
}

static int linear_backward(Linear c) {
    const long m16 = (c.m + 15) / 16 * 16, n = c.n, k = c.k;
    float *g = room(m16 * n), *gt = room(n * m16), *x = c.m == m16 ? 0 : zeros(m16 * k);
    float *gwords = room(c.bf16 ? m16 * n / 2 : 0), *gtwords = room(c.bf16 ? m16 * n / 2 : 0);
    float *xwords = room(c.bf16 ? m16 * k / 2 : 0);
    double *squares = calloc(n / 8, sizeof(double));
    int failed = !g || !gt || (c.m != m16 && !x) || !gwords || !gtwords || !xwords || !squares;
    if (x) memcpy(x, c.x, c.m * k * sizeof(float));
    const float *full = x ? x : c.x;
    const Sparse few = sparse(c.x, c.m, k);
    if (!failed)
#pragma omp parallel num_threads(c.threads)
    {
        float *piece = room(k > SIDE * SIDE ? k : SIDE * SIDE), *gxt = room(SIDE * m16);
        if (!piece || !gxt)
#pragma omp atomic write
            failed = 1;
#pragma omp for schedule(static)
        for (long e = 0; e < n; e += 16) {
            vec sum[16 / VL] = {{0}};
            for (long i = 0; i < m16; i++)
                for (long v = 0; v < 16 / VL; v++) {
                    const long at = i * n + e + v * VL;
                    vec y = {0};
                    if (i < c.m) y = LOAD(c.g + at);
                    if (i < c.m && c.kept) y = through(c.after, LOAD(c.kept + at), y);
                    STORE(g + at, y);
                    sum[v] += y;
                }
            for (long v = 0; c.gb && v < 16 / VL; v++) STORE(c.gb + e + v * VL, sum[v]);
            turn(g, m16, n, e, m16, gt + e * m16);
#ifdef __AVX512BF16__
            if (c.bf16) pair_floats(gt + e * m16, m16, 16, m16, gtwords + e / 2 * m16);
#endif
        }
#ifdef __AVX512BF16__
        if (c.bf16)
#pragma omp for schedule(static)
            for (long i = 0; i < m16; i += 2) {
                if (!few.few) pair_floats(full + i * k, k, 2, k, xwords + i / 2 * k);
                pair_floats(g + i * n, n, 2, n, gwords + i / 2 * n);
            }
#endif
#pragma omp for schedule(static)
        for (long part = 0; part < c.threads; part++) {
            const long from = n / 16 * part / c.threads * 16, to = n / 16 * (part + 1) / c.threads * 16;
            /* Gradients that no cache holds until they are read: to write them, nothing need be read before. */
            const int past = n * k > LARGE && (size_t)c.gw % 64 == 0;
            if (few.few && !failed) outer_sparse(&c, &few, g, from, to, past, piece, squares);
            for (long e = 0; e < k && !failed && !few.few; e += WIDE)
                for (long r = from; r < to; r += 8) {
                    const long wide = k - e < WIDE ? k - e : WIDE;
                    float of_lanes[VL] = {0};
                    Product p = {.a = g + r, .ak = n, .b = full + e, .ldb = k, .segments = 1, .k = m16,
                                 .c = c.gw + r * k + e, .ldc = k, .squares = c.squares ? of_lanes : 0, .stream = past};
#ifdef __AVX512BF16__
                    if (c.bf16) {
                        p.a = gwords + r, p.b = xwords + e, p.k = m16 / 2;
                        columns_bf16(p, 8, wide);
                    } else
#endif
                    columns_fp32(p, 8, wide);
                    squares[r / 8] += total(LOAD(of_lanes));
                }
        }
        _mm_sfence();
        if (c.out && !failed)
#pragma omp for schedule(static)
            for (long e = 0; e < k; e += SIDE) {
                const long side = k - e < SIDE ? k - e : SIDE;
                for (long r = 0; r < n; r += SIDE) {
                    const long deep = n - r < SIDE ? n - r : SIDE, shares = shares_of(m16);
                    const long nr = r + SIDE < n ? r + SIDE : 0, ne = nr ? e : e + SIDE; /* the next piece */
                    Product p = {.a = piece, .ak = side, .b = gt + r * m16, .ldb = m16, .segments = shares,
                                 .k = deep / shares, .sa = deep / shares * side, .pitch = k,
                                 .c = gxt, .ldc = m16, .add = r > 0};
#ifdef __AVX512BF16__
                    if (c.bf16) {
                        pair_floats(c.w + r * k + e, k, deep, side, piece);
                        p.b = gtwords + r / 2 * m16, p.k = deep / 2 / shares, p.sa = p.k * side;
                    } else
#endif
                    copy_rows(c.w + r * k + e, deep, k, piece, side);
                    p.each = (SIDE + p.k - 1) / p.k;
                    for (long j = 0; j < side; j += 8, p.a += 8, p.c += 8 * m16) {
                        p.next = ne < k && nr + j < n ? c.w + (nr + j) * k + ne : 0;
#ifdef __AVX512BF16__
                        if (c.bf16) {
                            columns_bf16(p, 8, m16);
                            continue;
                        }
#endif
                        columns_fp32(p, 8, m16);
                    }
                }
                for (long i = 0; i < c.m; i++)
                    for (long j = 0; j < side; j++) {
                        const long at = i * k + e + j;
                        c.out[at] = through_one(c.before, c.before ? c.x[at] : 0, gxt[j * m16 + i]);
                    }
            }
        free(piece), free(gxt);
    }
    for (long r = 0; r < n / 8 && !failed && c.squares; r++) *c.squares = (r ? *c.squares : 0) + squares[r];
    free(g), free(gt), free(x), free(gwords), free(gtwords), free(xwords), free(squares), release(few);
    return failed;
}

/* Either of the two for any sizes: filled up with 0 to multiples of 16, in places of their own. */
static int linear_any(int (*pass)(Linear), Linear c) {
    const long n = (c.n + 15) / 16 * 16, k = (c.k + 15) / 16 * 16;
    if (c.n == n && c.k == k) return pass(c);
    const int back = c.g != 0;
    float *x = zeros(c.m * k), *w = zeros(n * k), *bias = zeros(n), *y = zeros(c.m * n);
    float *gw = zeros(back ? n * k : 0), *gx = zeros(back ? c.m * k : 0);
    int failed = !x || !w || !bias || !y || !gw || !gx;
    if (!failed) {
        copy_rows(c.x, c.m, c.k, x, k), copy_rows(c.w, c.n, c.k, w, k);
        if (c.bias) copy_rows(c.bias, 1, c.n, bias, n);
        Linear full = {.x = x, .w = w, .bias = bias, .m = c.m, .n = n, .k = k,
                       .after = c.after, .bf16 = c.bf16, .threads = c.threads};
        if (back) {
            copy_rows(c.g, c.m, c.n, y, n);
            for (long i = 0; c.kept && i < c.m; i++)
                for (long j = 0; j < c.n; j++)
                    y[i * n + j] = through_one(c.after, c.kept[i * c.n + j], y[i * n + j]);
            full.bias = 0, full.g = y, full.gw = gw, full.gb = bias, full.out = c.out ? gx : 0;
        } else full.out = y;
        failed = pass(full);
        if (back) {
            copy_rows(gw, c.n, k, c.gw, c.k);
            for (long i = 0; c.out && i < c.m; i++)
                for (long j = 0; j < c.k; j++) {
                    const float in = x[i * k + j], by = gx[i * k + j];
                    c.out[i * c.k + j] = through_one(c.before, in, by);
                }
            if (c.gb) copy_rows(bias, 1, n, c.gb, c.n);
        } else copy_rows(y, c.m, n, c.out, c.n);
    }
    free(x), free(w), free(bias), free(y), free(gw), free(gx);
    return failed;
}

/* ------------------------------------------------------------------------------------------------ layers in a row */

enum { CONVOLUTION, TRANSPOSED, LINEAR, TO_PLANES, TO_PIXELS };

typedef struct {
    Shape shape;           /* a linear layer has n rows, cs outputs and cl inputs; TO_... n, h, w and cs channels */
    long kind, after, size; /* size: floats that come in */
    const float *w, *bias;
    float *out;            /* what the forward pass puts out is wanted by the backward pass */
    float *gw, *gb;        /* gb may be NULL */
    double squares;        /* of gw, in all, which costs nothing while it is made; negative where that was not so */
} Layer;

/* Channels last to channels first, to[n][cs][h w] from x[n][h w][cs], or back; the rest as in `unpad`. */
static void swap(const Shape s, int kind, const float *x, int before, const float *image, float *to, int threads) {
    const long pixels = s.h * s.w, rows = kind == TO_PLANES ? pixels : s.cs, columns = kind == TO_PLANES ? s.cs : pixels;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long n = 0; n < s.n; n++)
        for (long i = 0; i < columns; i++)
            for (long j = 0; j < rows; j++) {
                const long at = (n * columns + i) * rows + j;
                to[at] = through_one(before, before ? image[at] : 0, x[(n * rows + j) * columns + i]);
            }
}

/* Every layer after the other, from x on; returns 1 if memory ran out, else 0. */
int forward(const Layer *layers, long count, const float *x, int bf16, int threads) {
    int failed = 0;
    for (const Layer *l = layers; l < layers + count && !failed; x = l++->out) {
        const Shape s = l->shape;
        Call call = {.l = x, .s = x, .w = l->w, .bias = l->bias, .out = l->out,
                     .relu = l->after == RELU, .bf16 = bf16, .threads = threads};
        if (l->kind == LINEAR)
            failed = linear_any(linear, (Linear){.x = x, .w = l->w, .bias = l->bias, .out = l->out, .m = s.n, .n = s.cs,
                                                 .k = s.cl, .after = l->after, .bf16 = bf16, .threads = threads});
        else if (l->kind >= TO_PLANES) swap(s, l->kind, x, NOTHING, 0, l->out, threads);
        else failed = (s.kernel == 4 && s.cl > 4 ? wide : direct)(l->kind == CONVOLUTION ? DOWN : UP, s, call);
    }
    return failed;
}

/* The gradients by all weights and, unless gx is NULL, by x, from g, that by what was put out. With `spend` they take the
 * place of what the layers put out on the way, which is lost. */
int backward(Layer *layers, long count, const float *x, const float *g, float *gx, int bf16, int spend,
             int threads) {
    long most[2] = {0};
    for (long i = 1; i < count && !spend; i++)
        if (layers[i].size > most[i % 2]) most[i % 2] = layers[i].size;
    float *places[2] = {room(most[0]), room(most[1])};
    int failed = !places[0] || !places[1];
    for (long i = count - 1; i >= 0 && !failed; i--) {
        Layer *l = layers + i;
        const Shape s = l->shape;
        l->squares = -1;
        /* What comes in has gone through what follows the layer, but for the last one. */
        const float *in = i ? layers[i - 1].out : x, *kept = i == count - 1 && l->after ? l->out : 0;
        const int before = i ? layers[i - 1].after : NOTHING;
        float *out = !i ? gx : spend ? layers[i - 1].out : places[i % 2];
        Call call = {.l = in, .s = g, .kept = kept, .w = l->w, .out = out, .gw = l->gw, .gb = l->gb,
                     .before = before, .bf16 = bf16, .threads = threads};
        if (l->kind == TRANSPOSED) call.l = g, call.s = in;
        if (l->kind == LINEAR)
            failed = linear_any(linear_backward, (Linear){.x = in, .w = l->w, .g = g, .kept = kept, .out = out,
                                                          .gw = l->gw, .gb = l->gb, .m = s.n, .n = s.cs, .k = s.cl,
                                                          .squares = &l->squares,
                                                          .after = l->after, .before = before, .bf16 = bf16,
                                                          .threads = threads});
        else if (l->kind < TO_PLANES)
            failed = (s.kernel == 4 && s.cl > 4 ? wide : direct)(
                l->kind == CONVOLUTION ? DOWN_BACKWARD : UP_BACKWARD, s, call);
        else if (out) swap(s, l->kind == TO_PLANES ? TO_PIXELS : TO_PLANES, g, before, in, out, threads);
        g = out;
    }
    free(places[0]), free(places[1]);
    return failed;
}

/* ------------------------------------------------------------------------------------------------------ likelihood */

/* Sum over an image's values of x log p + (1 - x) log(1 - p), p = sigmoid(l), and, if wanted, its slope x - p by l. */
void bernoulli(const float *x, const float *l, float *out, float *slope, long images, long values, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long n = 0; n < images; n++) {
        vec sum = {0};
        for (long i = n * values; i < (n + 1) * values; i += VL) {
            const long left = (n + 1) * values - i;
            float rest[3][VL];
            const int whole = left >= VL;
            if (!whole) /* what fills up has likelihood 1 */
                for (int e = 0; e < VL; e++) rest[0][e] = e < left ? x[i + e] : 0, rest[1][e] = e < left ? l[i + e] : -100;
            const vec xv = LOAD(whole ? x + i : rest[0]), lv = LOAD(whole ? l + i : rest[1]);
            const vec e = exp_of_negative(-magnitude(lv)), p = choose(lv < 0, e, 1.0f + (vec){0}) / (1.0f + e);
            sum += xv * lv - unless(lv < 0, lv) - log1p_of_share(e);
            if (!slope) continue;
            STORE(whole ? slope + i : rest[2], xv - p);
            if (!whole) memcpy(slope + i, rest[2], left * sizeof(float));
        }
        out[n] = total(sum);
    }
}

/* ------------------------------------------------------------------------------------------------------ optimizers */

typedef struct {
    float *p, *m, *v;      /* a weight, and its running means; m is NULL for Adagrad, whose v is a sum */
    const float *g;
    long count;
    float rate, correction; /* of this step, with the bias of the means taken out */
} Moved;

/* One step of Adam, AdamW or Adagrad, as torch.optim has them: `decay` times the weight is added to its gradient, and
 * what remains of the weight is `keep` times itself; new1 and new2 are 1 minus the betas, which has digits of its own
 * where a beta is near 1. All tensors in one go: most are too small to share out. */
void move(const Moved *all, long tensors, float new1, float b2, float new2, float eps, float decay, float keep,
          int threads) {
#pragma omp parallel num_threads(threads)
    for (const Moved *t = all; t < all + tensors; t++) {
        const long me = omp_get_thread_num(), of = omp_get_num_threads();
        const long from = t->count / 16 * me / of * 16, to = me + 1 < of ? t->count / 16 * (me + 1) / of * 16 : t->count;
        float *restrict p = t->p, *restrict m = t->m, *restrict v = t->v;
        const float *restrict gradient = t->g, rate = t->rate, correction = t->correction;
        if (m)
#pragma omp simd
            for (long i = from; i < to; i++) {
                const float g = gradient[i] + decay * p[i];
                m[i] += new1 * (g - m[i]);
                v[i] = b2 * v[i] + new2 * g * g;
                p[i] = keep * p[i] - rate * m[i] / (__builtin_sqrtf(v[i]) * correction + eps);
            }
        else
#pragma omp simd
            for (long i = from; i < to; i++) {
                const float g = gradient[i] + decay * p[i];
                v[i] += g * g;
                p[i] = keep * p[i] - rate * g / (__builtin_sqrtf(v[i]) + eps);
            }
    }
}

/* The sum of all squares; piece by piece, which keeps its digits, and the same for any number of threads. */
double squares(const Moved *all, long tensors, int threads) {
    enum { PIECE = 1 << 14 };
    long pieces = 0;
    for (long t = 0; t < tensors; t++) pieces += (all[t].count + PIECE - 1) / PIECE;
    double sums[pieces + 1], sum = 0;
#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num(), of = omp_get_num_threads();
        long piece = 0;
        for (const Moved *t = all; t < all + tensors; t++)
            for (long from = 0; from < t->count; from += PIECE, piece++) {
                if (piece < pieces * me / of || piece >= pieces * (me + 1) / of) continue;
                const long to = from + PIECE < t->count ? from + PIECE : t->count;
                vec part[4] = {{0}};
                double rest = 0;
                long i = from;
                for (; i + 4 * VL <= to; i += 4 * VL)
                    for (int q = 0; q < 4; q++) part[q] += LOAD(t->g + i + q * VL) * LOAD(t->g + i + q * VL);
                for (; i < to; i++) rest += (double)t->g[i] * t->g[i];
                sums[piece] = total((part[0] + part[1]) + (part[2] + part[3])) + rest;
            }
    }
    for (long piece = 0; piece < pieces; piece++) sum += sums[piece];
    return sum;
}

/* ------------------------------------------------------------------------------------------------------- trees */

enum { DEPTH = 3, NODES = 7, WIDEST = 4 };

/* Regression trees of depth 3 on the same inputs, one for each row of residuals (T, N): every split is the exact best
   one by squared error, between neighbouring values of an input, and of equal ones that of the input first in
   `turn` (T, D). x (D, N) are the inputs and order (D, N) their rows by rising value. Writes of each tree the seven
   nodes, level by level (input, threshold and gain in the sum of squares; the threshold is infinite where nothing is
   gained), and the leaf of every row. */
void grow_trees(const float *x, const int *order, const double *residual, const int *turn, long n, long d, long trees,
                int threads, unsigned char *leaf, int *input, float *threshold, double *gain)
{
    #pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long t = 0; t < trees; t++) {
        const double *r = residual + t * n;
        unsigned char *node = leaf + t * n;
        for (long i = 0; i < n; i++) node[i] = 0;
        for (int level = 0; level < DEPTH; level++) {
            int width = 1 << level, first = width - 1;
            double sum[WIDEST] = {0}, best[WIDEST] = {0};
            long count[WIDEST] = {0};
            for (long i = 0; i < n; i++) { sum[node[i]] += r[i]; count[node[i]]++; }
            for (int j = 0; j < width; j++) {
                input[t * NODES + first + j] = 0;
                threshold[t * NODES + first + j] = INFINITY;
            }
            for (long k = 0; k < d; k++) {
                int column = turn[t * d + k];
                const float *v = x + column * n;
                const int *rows = order + column * n;
                double left[WIDEST] = {0};
                long seen[WIDEST] = {0};
                float last[WIDEST] = {0};
                for (long i = 0; i < n; i++) {
                    int row = rows[i], j = node[row];
                    float value = v[row];
                    if (seen[j] && value > last[j] + 1e-7f) {
                        double rest = (double)(count[j] - seen[j]);
                        double off = left[j] * count[j] - sum[j] * seen[j];
                        double gained = off * off / ((double)seen[j] * rest * count[j]);
                        if (gained > best[j] * (1 + 1e-12)) {
                            best[j] = gained;
                            input[t * NODES + first + j] = column;
                            float middle = last[j] / 2 + value / 2;
                            threshold[t * NODES + first + j] = middle < value ? middle : last[j];
                        }
                    }
                    left[j] += r[row];
                    seen[j]++;
                    last[j] = value;
                }
            }
            for (int j = 0; j < width; j++) gain[t * NODES + first + j] = best[j];
            for (long i = 0; i < n; i++) {
                int at = t * NODES + first + node[i];
                node[i] = 2 * node[i] + (x[input[at] * n + i] > threshold[at]);
            }
        }
    }
}
