// Mutated files: a safetensors reader must throw an Error or give tensors that can be read, nothing else.
// Runs under GoogleTest for a few seconds, or as a libFuzzer target (clang++ -fsanitize=fuzzer,address
// -DPOSATTN_LIBFUZZER).
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "runtime/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  using namespace posattn;
  // An exact copy, so that a sanitizer sees reads beyond its end.
  const std::vector<uint8_t> bytes(data, data + size);
  try {
    const SafeTensors file = SafeTensors::parse(bytes.data(), bytes.size());
    uint64_t sum = 0;
    for (const std::string &name : file.names()) {
      try {
        const TensorView tensor = file.get(name);
        const int64_t count = tensor.num_elements() * size_of(tensor.dtype());
        if (count > static_cast<int64_t>(size)) std::abort();  // more than was in the file
        for (int64_t i = 0; i < count; ++i) sum += tensor.as<uint8_t>()[i];
      } catch (const Error &) {  // a type or rank that posattn does not compute with
      }
    }
    static volatile uint64_t sink;
    sink = sum;  // the reads must happen
    (void)sink;
  } catch (const Error &) {
  }
  return 0;
}

#ifndef POSATTN_LIBFUZZER
#include <gtest/gtest.h>

namespace posattn {
namespace {

std::string valid_file(std::mt19937_64 &random) {
  const char *const types[] = {"F32", "BF16", "F16", "F64", "I64", "I32", "BOOL", "U8", "F8_E4M3"};
  const int sizes[] = {4, 2, 2, 8, 8, 4, 1, 1, 1};
  std::string header = "{";
  if (random() % 2) header += R"("__metadata__":{"format":"pt"},)";
  uint64_t position = 0;
  const int count = static_cast<int>(random() % 4) + 1;
  for (int i = 0; i < count; ++i) {
    const size_t type = random() % std::size(types);
    std::string shape;
    uint64_t bytes = static_cast<uint64_t>(sizes[type]);
    for (uint64_t d = random() % 4; d > 0; --d) {
      const uint64_t size = random() % 4;
      bytes *= size;
      shape += (shape.empty() ? "" : ",") + std::to_string(size);
    }
    header += (i > 0 ? ",\"t" : "\"t") + std::to_string(i) + R"(":{"dtype":")" + types[type] +
              R"(","shape":[)" + shape + R"(],"data_offsets":[)" + std::to_string(position) + "," +
              std::to_string(position + bytes) + "]}";
    position += bytes;
  }
  header += "}";
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i));
  file += header;
  for (uint64_t i = 0; i < position; ++i) file += static_cast<char>(random());
  return file;
}

void mutate(std::string &file, std::mt19937_64 &random) {
  const char *const pieces[] = {"0",
                                "-1",
                                "18446744073709551615",
                                "9223372036854775807",
                                "1e9",
                                "[",
                                "]",
                                "{",
                                "}",
                                "\"",
                                ",",
                                ":",
                                "null",
                                "\xff",
                                "\\",
                                "\\u0000",
                                "\"dtype\":",
                                "[0,0]",
                                "4294967296"};
  const size_t at = file.empty() ? 0 : random() % file.size();
  switch (random() % 8) {
    case 0:
      file.resize(at);
      break;
    case 1:
      file.erase(at, random() % 8 + 1);
      break;
    case 2:
      file.insert(at, pieces[random() % std::size(pieces)]);
      break;
    case 3:
      file.insert(at, file.substr(random() % (file.size() + 1), random() % 32));
      break;
    case 4:
      if (!file.empty()) file[at] = static_cast<char>(random());
      break;
    case 5:
      if (!file.empty()) file[at] = static_cast<char>(file[at] ^ (1 << random() % 8));
      break;
    case 6:  // the length of the header
      if (file.size() > 8) file[random() % 8] = static_cast<char>(random());
      break;
    case 7:  // a digit
      for (size_t i = at; i < file.size(); ++i) {
        if (file[i] >= '0' && file[i] <= '9') {
          file[i] = static_cast<char>('0' + random() % 10);
          break;
        }
      }
  }
  if (random() % 2 && file.size() >= 8) {
    // Half of the time the length fits again, so that the mutation reaches the parser.
    const size_t end = file.rfind('}');
    const uint64_t length = end == std::string::npos || end < 8 ? 0 : end - 7;
    for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(length >> (8 * i));
  }
}

TEST(SafeTensorsFuzz, MutatedFilesAreReadOrRefused) {
  const char *chosen = std::getenv("POSATTN_FUZZ_SEED"), *limit = std::getenv("POSATTN_FUZZ_SECONDS");
  const uint64_t seed = chosen ? std::strtoull(chosen, nullptr, 10) : std::random_device()();
  std::printf("POSATTN_FUZZ_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  std::mt19937_64 random(seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(limit ? std::atoi(limit) : 3);
  int64_t files = 0, accepted = 0;
  while (std::chrono::steady_clock::now() < end) {
    std::string file = valid_file(random);
    ASSERT_NO_THROW(SafeTensors::parse(file.data(), file.size())) << file;
    for (uint64_t i = random() % 6 + 1; i > 0; --i) mutate(file, random);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t *>(file.data()), file.size());
    ++files;
    try {
      SafeTensors::parse(file.data(), file.size());
      ++accepted;
    } catch (const Error &) {
    }
  }
  std::printf("%lld files, %lld of them accepted\n", static_cast<long long>(files),
              static_cast<long long>(accepted));
  // Both outcomes must come up, or the mutations do not reach the parser.
  EXPECT_GT(files, 100);
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, files);
}

}  // namespace
}  // namespace posattn
#endif
