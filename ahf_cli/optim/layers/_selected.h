/* The three maps for one number type T with vectors of LANES numbers; included once for each pair.
   Every function takes images or (row, output channel) pairs [first, last), so that threads share them. */

typedef T JOIN(V, SUFFIX) __attribute__((vector_size(sizeof(T) * LANES), aligned(sizeof(T))));
#define VECTOR JOIN(V, SUFFIX)
#define LOAD(p) (*(const VECTOR *)(p))
#define STORE(p, v) (*(VECTOR *)(p) = (v))

typedef T JOIN(H, SUFFIX) __attribute__((vector_size(sizeof(T) * LANES / 2)));
typedef T JOIN(Q, SUFFIX) __attribute__((vector_size(sizeof(T) * LANES / 4)));

static INLINE T JOIN(sum, SUFFIX)(VECTOR a)
{
    union { VECTOR whole; JOIN(H, SUFFIX) half[2]; } h = {a};
    union { JOIN(H, SUFFIX) whole; JOIN(Q, SUFFIX) half[2]; } q = {h.half[0] + h.half[1]};
    JOIN(Q, SUFFIX) s = q.half[0] + q.half[1];
#if LANES == 16
    return (s[0] + s[1]) + (s[2] + s[3]);
#else
    return s[0] + s[1];
#endif
}

/* y = x * w + u * v + b at the selected positions, 0 elsewhere. */
static INLINE void JOIN(forward_any, SUFFIX)(
    const Geometry *g, const T *x, const T *w, const T *u, const T *v, const T *b, const int32_t *at, T *y,
    int64_t first, int64_t last, const int height, const int vectors)
{
    const int64_t packed = (int64_t)height * vectors * LANES;
    for (int64_t i = first; i < last; i++) {
        const int64_t k = i / g->images, n = i % g->images;
        const T *xi = x + k * g->x_row + n * g->image, *ui = u ? u + k * g->u_row + n * g->image : 0;
        for (int64_t c = 0; c < g->channels; c++) {
            const T *wc = w + (k * g->channels + c) * packed, *vc = u ? v + (k * g->channels + c) * packed : 0;
            const T bias = b ? b[k * g->b_row + c] : 0;
            const int64_t from = k * g->y_row + n * g->y_image + c * g->y_channel;
            for (int64_t p = 0; p < g->places; p++) {
                const int64_t o = from + p * g->y_place;
                const int32_t s = at[o];
                if (s < 0) { y[o] = 0; continue; }
                VECTOR a[4] = {{0}, {0}, {0}, {0}};
                for (int r = 0; r < height; r++)
                    for (int j = 0; j < vectors; j++) {
                        const int m = r * vectors + j;
                        a[m & 3] += LOAD(wc + m * LANES) * LOAD(xi + s + r * g->line + j * LANES);
                        if (u) a[m & 3] += LOAD(vc + m * LANES) * LOAD(ui + s + r * g->line + j * LANES);
                    }
                y[o] = JOIN(sum, SUFFIX)((a[0] + a[1]) + (a[2] + a[3])) + bias;
            }
        }
    }
}

/* The transpose of x -> x * w and u -> u * v, applied to y and z. */
static INLINE void JOIN(input_any, SUFFIX)(
    const Geometry *g, const T *y, const T *w, const T *z, const T *v, const int32_t *at, T *x,
    int64_t first, int64_t last, const int height, const int vectors)
{
    const int64_t packed = (int64_t)height * vectors * LANES;
    for (int64_t i = first; i < last; i++) {
        const int64_t k = i / g->images, n = i % g->images;
        T *xi = x + k * g->x_row + n * g->image;
        for (int64_t c = 0; c < g->channels; c++) {
            const T *wc = w + (k * g->channels + c) * packed, *vc = z ? v + (k * g->channels + c) * packed : 0;
            const int64_t from = k * g->y_row + n * g->y_image + c * g->y_channel;
            for (int64_t p = 0; p < g->places; p++) {
                const int64_t o = from + p * g->y_place;
                const int32_t s = at[o];
                if (s < 0) continue;
                const T a = y[o], d = z ? z[o] : 0;
                for (int r = 0; r < height; r++)
                    for (int j = 0; j < vectors; j++) {
                        T *to = xi + s + r * g->line + j * LANES;
                        const int m = r * vectors + j;
                        VECTOR more = LOAD(to) + a * LOAD(wc + m * LANES);
                        if (z) more += d * LOAD(vc + m * LANES);
                        STORE(to, more);
                    }
            }
        }
    }
}

/* Some rows and vectors of the transpose of w -> x * w and v -> u * v, applied to y and z, and the sum of y. */
static INLINE void JOIN(weight_any, SUFFIX)(
    const Geometry *g, const T *y, const T *x, const T *z, const T *u, const int32_t *at, T *w, T *b,
    int64_t k, int64_t c, int row, int vector, const int height, const int vectors)
{
    VECTOR a[height * vectors];
    for (int m = 0; m < height * vectors; m++) a[m] = (VECTOR){0};
    T total = 0;
    for (int64_t n = 0; n < g->images; n++) {
        const int64_t shift = n * g->image + row * g->line + vector * LANES;
        const T *xi = x + k * g->x_row + shift, *ui = u ? u + k * g->u_row + shift : 0;
        const int64_t from = k * g->y_row + n * g->y_image + c * g->y_channel;
        for (int64_t p = 0; p < g->places; p++) {
            const int64_t o = from + p * g->y_place;
            const int32_t s = at[o];
            if (s < 0) continue;
            const T e = y[o], d = z ? z[o] : 0;
            total += e;
            for (int r = 0; r < height; r++)
                for (int j = 0; j < vectors; j++) {
                    VECTOR more = e * LOAD(xi + s + r * g->line + j * LANES);
                    if (z) more += d * LOAD(ui + s + r * g->line + j * LANES);
                    a[r * vectors + j] += more;
                }
        }
    }
    b[k * g->channels + c] = total;
    T row_of[vectors * LANES];
    for (int r = 0; r < height; r++) {
        for (int j = 0; j < vectors; j++) STORE(row_of + j * LANES, a[r * vectors + j]);
        for (int q = 0; q < vectors * LANES; q++) {
            const int64_t entry = vector * LANES + q;
            if (entry >= g->width * g->depth) break;
            const int64_t column = entry / g->depth, channel = entry % g->depth;
            w[(((k * g->channels + c) * g->depth + channel) * g->height + row + r) * g->width + column] = row_of[q];
        }
    }
}

#define CASES(call) \
    if (height == 5 && vectors == 1) call(5, 1) \
    else if (height == 5 && vectors == 2) call(5, 2) \
    else if (height == 3 && vectors == 1) call(3, 1) \
    else if (height == 3 && vectors == 2) call(3, 2) \
    else

CLONES static void JOIN(forward, SUFFIX)(
    const Geometry *g, const T *x, const T *w, const T *u, const T *v, const T *b, const int32_t *at, T *y,
    int64_t first, int64_t last)
{
    const int height = g->height, vectors = (g->width * g->depth + LANES - 1) / LANES;
#define CALL(h, m) { if (u) JOIN(forward_any, SUFFIX)(g, x, w, u, v, b, at, y, first, last, h, m); \
                     else JOIN(forward_any, SUFFIX)(g, x, w, 0, 0, b, at, y, first, last, h, m); }
    CASES(CALL) CALL(height, vectors)
#undef CALL
}

CLONES static void JOIN(input, SUFFIX)(
    const Geometry *g, const T *y, const T *w, const T *z, const T *v, const int32_t *at, T *x,
    int64_t first, int64_t last)
{
    const int height = g->height, vectors = (g->width * g->depth + LANES - 1) / LANES;
#define CALL(h, m) { if (z) JOIN(input_any, SUFFIX)(g, y, w, z, v, at, x, first, last, h, m); \
                     else JOIN(input_any, SUFFIX)(g, y, w, 0, 0, at, x, first, last, h, m); }
    CASES(CALL) CALL(height, vectors)
#undef CALL
}

CLONES static void JOIN(weight, SUFFIX)(
    const Geometry *g, const T *y, const T *x, const T *z, const T *u, const int32_t *at, T *w, T *b,
    int64_t first, int64_t last)
{
    const int height = g->height, vectors = (g->width * g->depth + LANES - 1) / LANES;
    for (int64_t i = first; i < last; i++) {
        const int64_t k = i / g->channels, c = i % g->channels;
#define CALL_AT(r, j, h, m) { if (z) JOIN(weight_any, SUFFIX)(g, y, x, z, u, at, w, b, k, c, r, j, h, m); \
                              else JOIN(weight_any, SUFFIX)(g, y, x, 0, 0, at, w, b, k, c, r, j, h, m); }
#define CALL(h, m) CALL_AT(0, 0, h, m)
        CASES(CALL)
            for (int r = 0; r < height; r++) {
                int j = 0;
                for (; j + 4 <= vectors; j += 4) CALL_AT(r, j, 1, 4)
                for (; j < vectors; j++) CALL_AT(r, j, 1, 1)
            }
#undef CALL
#undef CALL_AT
    }
}

/* (out, in, height, width) -> (height, row, out padded to whole vectors): the order of `block`. */
static T *JOIN(pack_channels, SUFFIX)(const Geometry *g, const T *w, int64_t stride)
{
    const int64_t wide = (g->channels + LANES - 1) / LANES * LANES, row = g->width * g->depth;
    T *result = calloc(g->rows * g->height * row * wide + 1, sizeof(T));
    if (!result) return 0;
    for (int64_t k = 0; k < g->rows; k++)
        for (int64_t c = 0; c < g->channels; c++)
            for (int64_t i = 0; i < g->depth; i++)
                for (int64_t r = 0; r < g->height; r++)
                    for (int64_t q = 0; q < g->width; q++)
                        result[((k * g->height + r) * row + q * g->depth + i) * wide + c] =
                            w[k * stride + ((c * g->depth + i) * g->height + r) * g->width + q];
    return result;
}

/* Some neighbours in a line of the convolution's plane, for one vector of channels. */
static INLINE void JOIN(neighbours, SUFFIX)(
    const Geometry *g, const T *x, const T *w, VECTOR bias, T *plane, int64_t wide, const int count)
{
    VECTOR a[8];
    for (int p = 0; p < count; p++) a[p] = bias;
    const int64_t row = g->width * g->depth;
    for (int64_t r = 0; r < g->height; r++)
        for (int64_t e = 0; e < row; e++) {
            const VECTOR m = LOAD(w + (r * row + e) * wide);
            for (int p = 0; p < count; p++) a[p] += x[r * g->line + e + p * g->depth] * m;
        }
    for (int p = 0; p < count; p++) STORE(plane + p * wide, a[p]);
}

/* Convolution, max-pooling and perhaps ReLU of images; and where the maxima lie, as offsets of windows. */
CLONES static int JOIN(block, SUFFIX)(
    const Geometry *g, const T *x, const T *w, const T *b, T *y, int32_t *at, int64_t first, int64_t last)
{
    typedef INTEGER WHERE __attribute__((vector_size(sizeof(T) * LANES), aligned(sizeof(T))));
    typedef int32_t OFFSETS __attribute__((vector_size(sizeof(int32_t) * LANES), aligned(sizeof(int32_t))));
    const int64_t lines = g->lines - g->height + 1, across = g->line / g->depth - g->width + 1;
    const int64_t wide = (g->channels + LANES - 1) / LANES * LANES;
    const int whole = g->y_channel == 1 && g->y_image >= g->places * g->channels + LANES;
    T *plane = malloc(lines * across * wide * sizeof(T));
    if (!plane) return 1;
    for (int64_t i = first; i < last; i++) {
        const int64_t k = i / g->images, n = i % g->images;
        const T *xi = x + k * g->x_row + n * g->image, *wk = w + k * g->height * g->width * g->depth * wide;
        for (int64_t c = 0; c < wide; c += LANES) {
            T biases[LANES] = {0};
            for (int64_t l = 0; b && l < LANES && c + l < g->channels; l++) biases[l] = b[k * g->b_row + c + l];
            const VECTOR bias = LOAD(biases);
            for (int64_t h = 0; h < lines; h++) {
                const T *from = xi + h * g->line;
                T *to = plane + h * across * wide + c;
                int64_t p = 0;
                for (; p + 8 <= across; p += 8)
                    JOIN(neighbours, SUFFIX)(g, from + p * g->depth, wk + c, bias, to + p * wide, wide, 8);
                for (; p < across; p++)
                    JOIN(neighbours, SUFFIX)(g, from + p * g->depth, wk + c, bias, to + p * wide, wide, 1);
            }
        }
        for (int64_t place = 0; place < g->places; place++) {
            const int64_t row = place / g->pooled, column = place % g->pooled;
            int64_t top = row * g->step[0] - g->margin[0], left = column * g->step[1] - g->margin[1];
            int64_t bottom = top + (g->window[0] - 1) * g->apart[0] + 1, right = left + (g->window[1] - 1) * g->apart[1] + 1;
            while (top < 0) top += g->apart[0];
            while (left < 0) left += g->apart[1];
            if (bottom > lines) bottom = lines;
            if (right > across) right = across;
            for (int64_t c = 0; c < wide; c += LANES) {
                /* As PyTorch chooses: the first of equal numbers; and NaN where the window holds one. */
                const T *start = plane + (top * across + left) * wide + c;
                VECTOR best = LOAD(start);
                WHERE where = {0}, valid = ~(WHERE){0};
                where += (INTEGER)((top * g->line) + left * g->depth);
                for (int64_t h = top; h < bottom; h += g->apart[0])
                    for (int64_t q = left; q < right; q += g->apart[1]) {
                        const VECTOR rival = LOAD(plane + (h * across + q) * wide + c);
                        const WHERE better = rival > best;
                        valid &= rival == rival;
                        const WHERE here = (WHERE){0} + (INTEGER)(h * g->line + q * g->depth);
                        best = (VECTOR)(((WHERE)rival & better) | ((WHERE)best & ~better));
                        where = (here & better) | (where & ~better);
                    }
                best = (VECTOR)((WHERE)best | ~valid); /* all bits set is a NaN */
                if (g->relu) {
                    const WHERE off = best <= (VECTOR){0}; /* all bits of a lane, which is -1 as an offset */
                    best = (VECTOR)((WHERE)best & ~off);
                    where |= off;
                }
                const OFFSETS offsets = __builtin_convertvector(where, OFFSETS);
                const int64_t o = k * g->y_row + n * g->y_image + place * g->y_place + c * g->y_channel;
                if (whole) { /* lanes beyond the channels are 0; the next place, or slack, follows */
                    STORE(y + o, best);
                    if (at) *(OFFSETS *)(at + o) = offsets;
                } else {
                    T values[LANES];
                    int32_t windows[LANES];
                    STORE(values, best);
                    *(OFFSETS *)windows = offsets;
                    const int64_t count = g->channels - c < LANES ? g->channels - c : LANES;
                    for (int64_t l = 0; l < count; l++) y[o + l * g->y_channel] = values[l];
                    for (int64_t l = 0; at && l < count; l++) at[o + l * g->y_channel] = windows[l];
                }
            }
        }
    }
    free(plane);
    return 0;
}

/* (out, in, height, width) -> (out, height, vectors x LANES), channels last within a row, zeros at its end. */
static T *JOIN(pack, SUFFIX)(const Geometry *g, const T *w, int64_t stride)
{
    const int64_t vectors = (g->width * g->depth + LANES - 1) / LANES, row = vectors * LANES;
    T *result = calloc(g->rows * g->channels * g->height * row + 1, sizeof(T));
    if (!result) return 0;
    for (int64_t k = 0; k < g->rows; k++)
        for (int64_t c = 0; c < g->channels; c++)
            for (int64_t i = 0; i < g->depth; i++)
                for (int64_t r = 0; r < g->height; r++)
                    for (int64_t q = 0; q < g->width; q++)
                        result[((k * g->channels + c) * g->height + r) * row + q * g->depth + i] =
                            w[k * stride + ((c * g->depth + i) * g->height + r) * g->width + q];
    return result;
}

#undef CASES
#undef VECTOR
#undef LOAD
#undef STORE
#undef T
#undef LANES
#undef SUFFIX
#undef INTEGER
