#include "pq_weight.h"

#include <cstring>

#include "kernels/half.h"

namespace onnxpq {
namespace {

constexpr size_t kMaxCodewords = 256;

// Codebooks of up to so many elements (64 KB then) are widened to float32 once: a small layer spends a quarter of its
// time on it otherwise. Larger ones are kept in float16 where that loses nothing, so that a session needs little memory.
constexpr size_t kWidenedElements = 16 * 1024;

const char* name_of(TensorType type) {
  switch (type) {
    case TensorType::kFloat32:
      return "float32";
    case TensorType::kFloat16:
      return "float16";
    case TensorType::kInt8:
      return "int8";
    case TensorType::kUint8:
      return "uint8";
    default:
      return "of another type";
  }
}

[[noreturn]] void refuse(const std::string& node, const char* input, const std::string& problem) {
  throw Refusal(node + ": input '" + input + "' " + problem);
}

void check_float(const std::string& node, const char* input, const TensorView& tensor) {
  if (tensor.type != TensorType::kFloat32 && tensor.type != TensorType::kFloat16) {
    refuse(node, input, std::string("is ") + name_of(tensor.type) + "; expected float16 or float32.");
  }
}

void check_rank(const std::string& node, const char* input, const TensorView& tensor, size_t rank, const char* layout) {
  bool usable = tensor.shape.size() == rank;
  for (const int64_t size : tensor.shape) usable = usable && size > 0;
  if (!usable) {
    refuse(node, input, "has shape " + to_string(tensor.shape) + "; expected " + layout + ", no size zero.");
  }
}

void check_codebooks(const std::string& node, const TensorView& codebooks) {
  const TensorType type = codebooks.type;
  if (type != TensorType::kInt8 && type != TensorType::kFloat16 && type != TensorType::kFloat32) {
    refuse(node, "codebooks", std::string("is ") + name_of(type) + "; expected int8, float16 or float32.");
  }
  check_rank(node, "codebooks", codebooks, 4, "[R, G, K, d]");
  if (codebooks.shape[2] < 2 || codebooks.shape[2] > static_cast<int64_t>(kMaxCodewords)) {
    refuse(node, "codebooks",
           "has shape " + to_string(codebooks.shape) + ", " + std::to_string(codebooks.shape[2]) +
               " codewords; expected 2 to 256.");
  }
}

void check_codes_shape(const std::string& node, const TensorView& codes, const TensorView& codebooks, int64_t out) {
  if (codes.type != TensorType::kUint8) {
    refuse(node, "codes", std::string("is ") + name_of(codes.type) + "; expected uint8.");
  }
  check_rank(node, "codes", codes, 3, "[B, R*M, 16]");
  const int64_t codewords = codebooks.shape[2];
  const auto block =
      static_cast<int64_t>(codewords <= static_cast<int64_t>(kNibbleCodewords) ? kNibbleOutputs : kByteOutputs);
  const int64_t blocks = (out - 1) / block + 1;
  if (codes.shape[0] != blocks || codes.shape[2] != static_cast<int64_t>(kUnitBytes) ||
      codes.shape[1] % codebooks.shape[0] != 0) {
    refuse(node, "codes",
           "has shape " + to_string(codes.shape) + "; expected [" + std::to_string(blocks) + ", a multiple of " +
               std::to_string(codebooks.shape[0]) + ", 16] for " + std::to_string(out) +
               " outputs (the size of 'scales'), " + std::to_string(codewords) + " codewords and " +
               std::to_string(codebooks.shape[0]) + " stages.");
  }
  const int64_t sub_vectors = codes.shape[1] / codebooks.shape[0];
  if (codebooks.shape[1] > sub_vectors) {
    refuse(node, "codebooks",
           "has shape " + to_string(codebooks.shape) + ", " + std::to_string(codebooks.shape[1]) +
               " groups; expected at most one for each of the " + std::to_string(sub_vectors) +
               " sub-vectors that 'codes' " + to_string(codes.shape) + " has.");
  }
}

// A code that points past the codebook would make the kernel read past a table. Where every value is a code there is
// nothing to check, and codes in a mapped file are not read before they are used.
void check_code_values(const std::string& node, const TensorView& codes, size_t codewords) {
  if (codewords == kNibbleCodewords || codewords == kMaxCodewords) return;
  const auto* bytes = static_cast<const uint8_t*>(codes.data);
  const auto count = static_cast<size_t>(codes.shape[0] * codes.shape[1]) * kUnitBytes;
  for (size_t i = 0; i < count; ++i) {
    unsigned code = bytes[i];
    if (codewords <= kNibbleCodewords) {
      const unsigned low = code & 15u, high = code >> 4;
      code = low > high ? low : high;
    }
    if (code >= codewords) {
      refuse(node, "codes",
             "holds the code " + std::to_string(code) + " in byte " + std::to_string(i) +
                 ", past the end of its codebook; expected codes below " + std::to_string(codewords) + ".");
    }
  }
}

void check_per_output(const std::string& node, const char* input, const TensorView& tensor) {
  check_float(node, input, tensor);
  check_rank(node, input, tensor, 1, "[out]");
}

// The first `count` elements as float32, then zeros.
std::vector<float> widened(const TensorView& tensor, size_t count, size_t padded_size) {
  std::vector<float> result(padded_size, 0.0f);
  if (tensor.type == TensorType::kFloat32) {
    std::memcpy(result.data(), tensor.data, count * sizeof(float));
    return result;
  }
  const auto* bytes = static_cast<const unsigned char*>(tensor.data);
  for (size_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, bytes + i * sizeof half, sizeof half);
    result[i] = half_to_float(half);
  }
  return result;
}

float element(const TensorView& tensor, size_t index) {
  const auto* const bytes = static_cast<const unsigned char*>(tensor.data);
  if (tensor.type == TensorType::kInt8) return static_cast<float>(static_cast<const int8_t*>(tensor.data)[index]);
  if (tensor.type == TensorType::kFloat16) {
    uint16_t half;
    std::memcpy(&half, bytes + index * sizeof half, sizeof half);
    return half_to_float(half);
  }
  float value;
  std::memcpy(&value, bytes + index * sizeof value, sizeof value);
  return value;
}

// Codewords [books][K][d] to columns [books][d][width]. Columns past K repeat the last codeword: it moves neither the
// smallest nor the largest entry of a table.
template <typename T, typename Convert>
std::vector<unsigned char> columns(const TensorView& codebooks, size_t width, const Convert& convert) {
  const auto K = static_cast<size_t>(codebooks.shape[2]), d = static_cast<size_t>(codebooks.shape[3]);
  const auto books = static_cast<size_t>(codebooks.shape[0] * codebooks.shape[1]);
  std::vector<unsigned char> result(books * d * width * sizeof(T));
  for (size_t book = 0; book < books; ++book) {
    for (size_t i = 0; i < d; ++i) {
      for (size_t k = 0; k < width; ++k) {
        const T value = convert(element(codebooks, (book * K + (k < K ? k : K - 1)) * d + i));
        std::memcpy(result.data() + ((book * d + i) * width + k) * sizeof(T), &value, sizeof(T));
      }
    }
  }
  return result;
}

}  // namespace

std::string to_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

PQWeight::PQWeight(const std::string& node, const ConstantInputs& inputs, bool fast) : shape_{} {
  check_codebooks(node, inputs.codebooks);
  if (fast && inputs.codebooks.shape[2] > static_cast<int64_t>(kNibbleCodewords)) {
    throw Refusal(node + ": attribute 'fast' is 1 with " +
                  std::to_string(inputs.codebooks.shape[2]) + " codewords; expected 0 where there are more than 16.");
  }
  check_per_output(node, "scales", inputs.scales);
  if (inputs.has_bias) check_per_output(node, "bias", inputs.bias);
  const int64_t out = inputs.scales.shape[0];
  if (inputs.has_bias && inputs.bias.shape[0] != out) {
    refuse(node, "bias",
           "has shape " + to_string(inputs.bias.shape) + "; expected [" + std::to_string(out) +
               "], the shape of 'scales'.");
  }
  check_codes_shape(node, inputs.codes, inputs.codebooks, out);

  const std::vector<int64_t>& codebooks = inputs.codebooks.shape;
  const auto S = static_cast<size_t>(inputs.codes.shape[1]);
  shape_.out = static_cast<size_t>(out);
  shape_.R = static_cast<size_t>(codebooks[0]);
  shape_.G = static_cast<size_t>(codebooks[1]);
  shape_.codewords = static_cast<size_t>(codebooks[2]);
  shape_.d = static_cast<size_t>(codebooks[3]);
  shape_.M = S / shape_.R;
  shape_.fast = fast;
  shape_.group_width = (shape_.M - 1) / shape_.G + 1;
  check_code_values(node, inputs.codes, shape_.codewords);

  const bool nibbles = shape_.codewords <= kNibbleCodewords;
  shape_.codebook_width = nibbles
                              ? kNibbleCodewords
                              : (shape_.codewords + kCodewordAlignment - 1) / kCodewordAlignment * kCodewordAlignment;
  const bool is_small = shape_.R * shape_.G * shape_.d * shape_.codebook_width <= kWidenedElements;
  if (is_small || inputs.codebooks.type == TensorType::kFloat32) {
    shape_.codebook_element = Element::kFloat32;
    codebooks_ = columns<float>(inputs.codebooks, shape_.codebook_width, [](float value) { return value; });
  } else {
    // float16 to float32 and back changes nothing, and float16 holds all integers of a byte.
    shape_.codebook_element = Element::kFloat16;
    codebooks_ = columns<uint16_t>(inputs.codebooks, shape_.codebook_width, float_to_half);
  }
  const size_t padded_out = static_cast<size_t>(inputs.codes.shape[0]) * (nibbles ? kNibbleOutputs : kByteOutputs);
  scales_ = widened(inputs.scales, shape_.out, padded_out);
  if (inputs.has_bias) bias_ = widened(inputs.bias, shape_.out, padded_out);
}

Weight PQWeight::view(size_t in, const void* codes) const {
  Weight weight = shape_;
  weight.in = in;
  weight.codebooks = codebooks_.data();
  weight.codes = static_cast<const uint8_t*>(codes);
  weight.scales = scales_.data();
  weight.bias = bias_.data();
  return weight;
}

}  // namespace onnxpq
