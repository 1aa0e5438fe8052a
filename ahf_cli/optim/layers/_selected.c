/* Convolution at selected positions on a CPU: three bilinear maps, each the transpose of another one.

   Images lie with channels last, so that a row of a window is contiguous in memory.  `at` holds for each output the
   offset of its window in the image, or -1 for an output that is 0.  A row is read in whole vectors: the numbers
   beyond its end meet weights that are 0, and each image ends with LANES zeros of its own. */

#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t rows, images, channels, places;         /* trials, images of each, output channels, outputs of each */
    int64_t height, width, depth;                   /* of the kernel; depth: input channels */
    int64_t line, image;                            /* numbers from one line of an image, and one image, to the next */
    int64_t x_row, u_row;                           /* from one trial's images to the next one's; 0: shared */
    int64_t y_row, y_image, y_channel, y_place;     /* the same for outputs and `at` */
    int64_t w_row, v_row, b_row;                    /* from one trial's weights to the next one's */
    int64_t threads;
    int64_t lines, pooled;                          /* lines of an image; pooled outputs in a line */
    int64_t window[2], step[2], margin[2], apart[2];/* of the pooling: kernel, stride, padding, dilation */
    int64_t relu;
} Geometry;

#define INLINE inline __attribute__((always_inline))
#define GLUE(a, b) a##_##b
#define JOIN(a, b) GLUE(a, b)
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#define T float
#define LANES 8
#define INTEGER int32_t
#define SUFFIX f8
#include "_selected.h"

#define T float
#define LANES 16
#define INTEGER int32_t
#define SUFFIX f16
#include "_selected.h"

#define T double
#define LANES 8
#define INTEGER int64_t
#define SUFFIX d8
#include "_selected.h"

/* Run `call` on ranges of 0 .. total, one a thread. */
#define SHARED(total, call) \
    { \
        const int64_t all = (total), most = all > 0 ? all : 1; \
        const int64_t parts = g->threads < most ? g->threads : most; \
        _Pragma("omp parallel for num_threads(parts) if (parts > 1)") \
        for (int64_t part = 0; part < parts; part++) { \
            const int64_t first = all * part / parts, last = all * (part + 1) / parts; \
            call; \
        } \
    }

#define KIND(g, wide) (wide ? 2 : (g)->width * (g)->depth <= 8 ? 0 : 1)
#define EACH(kind, body) \
    switch (kind) { \
    case 0: body(float, f8) break; \
    case 1: body(float, f16) break; \
    default: body(double, d8) break; \
    }

typedef unsigned long long Address;

/* Return the sizes that a call was given as bytes, or 0 with an exception.
   A format with "#" would give them too, but built by Python 3.13 it fails in 3.11 and 3.12. */
static const Geometry *sizes(PyObject *given)
{
    char *bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(given, &bytes, &size)) return 0;
    if (size == sizeof(Geometry)) return (const Geometry *)bytes;
    PyErr_SetString(PyExc_ValueError, "geometry has another size");
    return 0;
}

static PyObject *done(int failed)
{
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* Write zeros behind the used numbers of each output image; `width` is the size of a number. */
static void clear_slack(const Geometry *g, void *y, size_t width, int64_t first, int64_t last)
{
    const int64_t used = g->places * g->channels;
    for (int64_t i = first; i < last; i++) {
        const int64_t from = i / g->images * g->y_row + i % g->images * g->y_image + used;
        memset((char *)y + from * width, 0, (g->y_image - used) * width);
    }
}

static PyObject *forward(PyObject *self, PyObject *args)
{
    Address x, w, u, v, b, at, y;
    PyObject *given;
    int wide, failed = 0;
    if (!PyArg_ParseTuple(args, "OiKKKKKKK", &given, &wide, &x, &w, &u, &v, &b, &at, &y)) return 0;
    const Geometry *g = sizes(given);
    if (!g) return 0;
    Py_BEGIN_ALLOW_THREADS
#define BODY(N, S) { \
        N *pw = pack_##S(g, (const N *)w, g->w_row), *pv = u ? pack_##S(g, (const N *)v, g->v_row) : 0; \
        failed = !pw || (u && !pv); \
        if (!failed) SHARED(g->rows * g->images, \
            clear_slack(g, (N *)y, sizeof(N), first, last); \
            forward_##S(g, (const N *)x, pw, (const N *)u, pv, (const N *)b, (const int32_t *)at, (N *)y, first, last)) \
        free(pw); free(pv); }
    EACH(KIND(g, wide), BODY)
#undef BODY
    Py_END_ALLOW_THREADS
    return done(failed);
}

static PyObject *input(PyObject *self, PyObject *args)
{
    Address y, w, z, v, at, x;
    PyObject *given;
    int wide, failed = 0;
    if (!PyArg_ParseTuple(args, "OiKKKKKK", &given, &wide, &y, &w, &z, &v, &at, &x)) return 0;
    const Geometry *g = sizes(given);
    if (!g) return 0;
    Py_BEGIN_ALLOW_THREADS
#define BODY(N, S) { \
        N *pw = pack_##S(g, (const N *)w, g->w_row), *pv = z ? pack_##S(g, (const N *)v, g->v_row) : 0; \
        failed = !pw || (z && !pv); \
        if (!failed) SHARED(g->rows * g->images, \
            for (int64_t i = first; i < last; i++) \
                memset((N *)x + i / g->images * g->x_row + i % g->images * g->image, 0, g->image * sizeof(N)); \
            input_##S(g, (const N *)y, pw, (const N *)z, pv, (const int32_t *)at, (N *)x, first, last)) \
        free(pw); free(pv); }
    EACH(KIND(g, wide), BODY)
#undef BODY
    Py_END_ALLOW_THREADS
    return done(failed);
}

static PyObject *weight(PyObject *self, PyObject *args)
{
    Address y, x, z, u, at, w, b;
    PyObject *given;
    int wide;
    if (!PyArg_ParseTuple(args, "OiKKKKKKK", &given, &wide, &y, &x, &z, &u, &at, &w, &b)) return 0;
    const Geometry *g = sizes(given);
    if (!g) return 0;
    Py_BEGIN_ALLOW_THREADS
#define BODY(N, S) \
        SHARED(g->rows * g->channels, \
            weight_##S(g, (const N *)y, (const N *)x, (const N *)z, (const N *)u, (const int32_t *)at, (N *)w, (N *)b, \
                       first, last))
    EACH(KIND(g, wide), BODY)
#undef BODY
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *block(PyObject *self, PyObject *args)
{
    Address x, w, b, y, at;
    PyObject *given;
    int wide, failed = 0;
    if (!PyArg_ParseTuple(args, "OiKKKKK", &given, &wide, &x, &w, &b, &y, &at)) return 0;
    const Geometry *g = sizes(given);
    if (!g) return 0;
    Py_BEGIN_ALLOW_THREADS
#define BODY(N, S) { \
        N *pw = pack_channels_##S(g, (const N *)w, g->w_row); \
        failed = !pw; \
        if (!failed) SHARED(g->rows * g->images, \
            clear_slack(g, (N *)y, sizeof(N), first, last); \
            if (at) clear_slack(g, (int32_t *)at, sizeof(int32_t), first, last); \
            if (block_##S(g, (const N *)x, pw, (const N *)b, (N *)y, (int32_t *)at, first, last)) failed = 1) \
        free(pw); }
    EACH(wide ? 2 : g->channels <= 8 ? 0 : 1, BODY)
#undef BODY
    Py_END_ALLOW_THREADS
    return done(failed);
}

static PyObject *instructions(PyObject *self, PyObject *args)
{
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
    __builtin_cpu_init();
    return PyUnicode_FromString(
        __builtin_cpu_supports("x86-64-v4") ? "x86-64-v4" : __builtin_cpu_supports("x86-64-v3") ? "x86-64-v3" : "x86-64");
#else
    return PyUnicode_FromString("generic");
#endif
}

static PyMethodDef methods[] = {
    {"forward", forward, METH_VARARGS, "y = x * w + u * v + b at the selected positions."},
    {"input", input, METH_VARARGS, "The transpose of x -> x * w and u -> u * v, applied to y and z."},
    {"weight", weight, METH_VARARGS, "The transpose of w -> x * w and v -> u * v, applied to y and z; and the sum of y."},
    {"block", block, METH_VARARGS, "Convolution, max-pooling and ReLU, and where the maxima lie."},
    {"instructions", instructions, METH_NOARGS, "The instruction set in use."},
    {0, 0, 0, 0},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_selected", 0, -1, methods, 0, 0, 0, 0};
PyMODINIT_FUNC PyInit__selected(void) { return PyModule_Create(&module); }
