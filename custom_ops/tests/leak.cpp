// The operator as it is, but for one thing: it forgets to free its kernels. sanitize.sh builds a library of it, to see
// that the leak sanitizer finds what this library leaks inside of onnxruntime and Python.

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "ort_values.h"
#include "pq_matmul.h"
#include "pq_matmul_op.h"
#include "pq_weight.h"

#define delete (void)
#include "pq_matmul_op.cpp"
