#include "runtime/safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <vector>

#include "runtime/error.h"

namespace posattn {
namespace {

namespace fs = std::filesystem;

class Folder {
 public:
  Folder() {
    const char *base = std::getenv("TEST_TMPDIR");
    std::string name =
        (base ? std::string(base) : fs::temp_directory_path().string()) + "/safetensors.XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path_); }
  std::string file(const std::string &name) const { return (path_ / name).string(); }
  size_t size() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
  }
  const fs::path &path() const { return path_; }

 private:
  fs::path path_;
};

std::string read_all(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

std::string with_length(uint64_t length, const std::string &rest) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(length >> (8 * i));
  return bytes + rest;
}

std::string file_of(const std::string &header, size_t data_size) {
  return with_length(header.size(), header + std::string(data_size, '\1'));
}

// The text of the Error for these bytes.
std::string error_of(const std::string &bytes) {
  try {
    SafeTensors::parse(bytes.data(), bytes.size(), "bad.safetensors");
  } catch (const Error &error) {
    EXPECT_EQ(std::string(error.what()).rfind("bad.safetensors", 0), 0u) << error.what();
    return error.what();
  }
  return "";
}

#define EXPECT_REFUSED(bytes, text) \
  EXPECT_NE(error_of(bytes).find(text), std::string::npos) << error_of(bytes)

TEST(SafeTensors, RoundTripOfEveryType) {
  const Folder folder;
  const float values[] = {1.5f, -2, 0, 7, 1e4f, -0.25f};
  const TensorView source(values, DType::f32, {2, 3});
  std::vector<Tensor> tensors;
  std::vector<std::pair<std::string, TensorView>> named;
  for (DType type :
       {DType::boolean, DType::f16, DType::f32, DType::i64, DType::bf16, DType::f64, DType::i32}) {
    tensors.push_back(copy_of(source, type));
    named.emplace_back(std::string("tensor ") + name_of(type), tensors.back());
  }
  named.emplace_back("nothing", TensorView(nullptr, DType::f32, {4, 0}));
  named.emplace_back("scalar", TensorView(values, DType::f32, {}));
  named.emplace_back("strided", source.transposed(0, 1));
  named.emplace_back("\"quotes\" and \u00fcmlaut", source);
  save_safetensors(folder.file("all.safetensors"), named);

  const SafeTensors file = SafeTensors::open(folder.file("all.safetensors"));
  EXPECT_EQ(file.names().size(), named.size());
  for (const auto &[name, expected] : named) {
    ASSERT_TRUE(file.has(name)) << name;
    const TensorView got = file.get(name);
    EXPECT_EQ(got.dtype(), expected.dtype());
    EXPECT_EQ(got.shape_text(), expected.shape_text());
    EXPECT_TRUE(got.contiguous());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(got.data()) % 64, 0u);
    const Tensor dense = copy_of(expected, expected.dtype());
    EXPECT_EQ(std::memcmp(got.data(), dense.as<void>(),
                          static_cast<size_t>(got.num_elements() * size_of(got.dtype()))),
              0)
        << name;
  }
  EXPECT_FALSE(file.has("none"));
  EXPECT_TRUE(file.find("none").empty());
  EXPECT_THROW(file.get("none"), Error);
  EXPECT_EQ(folder.size(), 1u);  // no temporary file stays
}

TEST(SafeTensors, TensorsOutliveTheHandleTheyCameFrom) {
  const Folder folder;
  const float value = 3;
  save_safetensors(folder.file("a"), {{"x", TensorView(&value, DType::f32, {1})}});
  SafeTensors copy = SafeTensors::open(folder.file("a"));
  auto file = std::make_unique<SafeTensors>(copy);
  EXPECT_EQ(*file->get("x").as<float>(), 3);
  file.reset();
  EXPECT_EQ(*copy.get("x").as<float>(), 3);
  EXPECT_EQ(copy.get("x").data(), copy.get("x").data());  // read once
}

TEST(SafeTensors, BytesAreWhatOthersRead) {
  const Folder folder;
  const uint8_t truth[] = {1, 0};
  const int32_t number = 7;
  save_safetensors(folder.file("a"), {{"b", TensorView(truth, DType::boolean, {2})},
                                      {"i", TensorView(&number, DType::i32, {1})}});
  const std::string bytes = read_all(folder.file("a"));
  const std::string header =
      R"({"i":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"BOOL","shape":[2],"data_offsets":[4,6]}})";
  const size_t padded = (header.size() + 7) / 8 * 8;
  EXPECT_EQ(bytes, with_length(padded, header + std::string(padded - header.size(), ' ') +
                                           std::string("\7\0\0\0\1\0", 6)));
}

TEST(SafeTensors, ReadsMetadataUnalignedDataAndTypesItCannotUse) {
  const std::string header =
      R"({"__metadata__":{"format":"pt","note":"x"},"u":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
      R"("deep":{"dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[7,8]},)"
      R"("f":{"shape":[1],"data_offsets":[3,7],"dtype":"F32"}} )";
  const std::string bytes = with_length(header.size(), header + std::string("\1\2\3\0\0\x80\x3f\1", 8));
  const SafeTensors file = SafeTensors::parse(bytes.data(), bytes.size());
  EXPECT_EQ(file.names(), (std::vector<std::string>{"u", "f", "deep"}));
  EXPECT_EQ(*file.get("f").as<float>(), 1);
  EXPECT_THROW(file.get("u"), Error);
  EXPECT_THROW(file.get("deep"), Error);
  const std::string nothing = with_length(2, "{}");
  EXPECT_TRUE(SafeTensors::parse(nothing.data(), nothing.size()).names().empty());
}

TEST(SafeTensors, LyingSizesAreRefused) {
  EXPECT_REFUSED("", "at least 8 bytes");
  EXPECT_REFUSED("1234567", "at least 8 bytes");
  EXPECT_REFUSED(with_length(3, "{}"), "truncated");
  EXPECT_REFUSED(with_length(~uint64_t{0}, "{}"), "at most");
  EXPECT_REFUSED(with_length(uint64_t{1} << 40, "{}"), "at most");
  EXPECT_REFUSED(with_length(0, ""), "'{'");
  const std::string one = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  EXPECT_EQ(error_of(file_of(one, 8)), "");
  EXPECT_REFUSED(file_of(one, 7), "truncated");
  EXPECT_REFUSED(file_of(one, 9), "expected 8 bytes of tensors, got 9");
}

TEST(SafeTensors, LyingOffsetsAreRefused) {
  const auto two = [](const std::string &a, const std::string &b) {
    return file_of(R"({"a":{"dtype":"I32","shape":[1],"data_offsets":)" + a +
                       R"(},"b":{"dtype":"I32","shape":[1],"data_offsets":)" + b + "}}",
                   8);
  };
  EXPECT_EQ(error_of(two("[0,4]", "[4,8]")), "");
  EXPECT_EQ(error_of(two("[4,8]", "[0,4]")), "");
  EXPECT_REFUSED(two("[0,4]", "[0,4]"), "overlaps");
  EXPECT_REFUSED(two("[0,4]", "[2,6]"), "overlaps");
  EXPECT_REFUSED(two("[0,4]", "[8,12]"), "truncated");
  EXPECT_REFUSED(two("[0,4]", "[8,4]"), "data_offsets");
  EXPECT_REFUSED(two("[0,4]", "[4,9]"), "data_offsets");
  EXPECT_REFUSED(two("[1,5]", "[5,9]"), "");
  EXPECT_REFUSED(two("[0,4]", "[-4,0]"), "out of range");
  EXPECT_REFUSED(two("[0,4]", "[4.0,8.0]"), "integer");
  EXPECT_REFUSED(two("[0,4]", "[4]"), "two numbers");
  EXPECT_REFUSED(two("[0,4]", "[4,8,12]"), "two numbers");
  EXPECT_REFUSED(two("[0,4]", "[18446744073709551612,18446744073709551616]"), "");
  EXPECT_REFUSED(two("[0,4]", "[18446744073709551614,2]"), "data_offsets");
  const std::string gap = R"({"a":{"dtype":"I32","shape":[1],"data_offsets":[4,8]}})";
  EXPECT_REFUSED(file_of(gap, 8), "gap");
}

TEST(SafeTensors, LyingShapesAreRefused) {
  const auto shaped = [](const std::string &shape, const std::string &dtype = "F32") {
    return file_of(R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":[0,16]}})",
                   16);
  };
  EXPECT_EQ(error_of(shaped("[2,2]")), "");
  EXPECT_REFUSED(shaped("[2,3]"), "data_offsets");
  EXPECT_REFUSED(shaped("[]"), "data_offsets");
  EXPECT_REFUSED(shaped("[4294967296,4294967296,4]"), "63 bits");
  EXPECT_REFUSED(shaped("[9223372036854775808]"), "out of range");
  EXPECT_REFUSED(shaped("[4611686018427387904]"), "63 bits");  // bytes
  EXPECT_REFUSED(shaped("[-4]"), "out of range");
  EXPECT_REFUSED(shaped("[4.0]"), "integer");
  EXPECT_REFUSED(shaped("[[4]]"), "unexpected");
  EXPECT_REFUSED(shaped("4"), "unexpected");
  EXPECT_REFUSED(shaped("[4]", "F31"), "no known dtype");
  EXPECT_REFUSED(shaped("[4]", "f32"), "no known dtype");
}

TEST(SafeTensors, BadHeadersAreRefused) {
  EXPECT_REFUSED(file_of("[]", 0), "'{'");
  EXPECT_REFUSED(file_of(" {}", 0), "'{'");
  EXPECT_REFUSED(file_of("{", 0), "no JSON");
  EXPECT_REFUSED(file_of("{}x", 0), "no JSON");
  EXPECT_REFUSED(file_of(R"({"a":1})", 0), "unexpected");
  EXPECT_REFUSED(file_of(R"({"a":null})", 0), "unexpected");
  EXPECT_REFUSED(file_of(R"({"a":{}})", 0), "dtype, shape and data_offsets");
  EXPECT_REFUSED(file_of(R"({"a":{"dtype":"F32","shape":[0]}})", 0), "dtype, shape and data_offsets");
  EXPECT_REFUSED(file_of(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"x":1}})", 0), "got 'x'");
  EXPECT_REFUSED(file_of(R"({"a":{"dtype":"F32","shape":[0],"shape":[0],"data_offsets":[0,0]}})", 0),
                 "twice");
  const std::string a = R"("a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  EXPECT_EQ(error_of(file_of("{" + a + "}", 0)), "");
  EXPECT_REFUSED(file_of("{" + a + "," + a + "}", 0), "two entries");
  EXPECT_REFUSED(file_of(R"({"__metadata__":{"a":1}})", 0), "unexpected");
  EXPECT_REFUSED(file_of(R"({"__metadata__":[]})", 0), "unexpected");
  EXPECT_REFUSED(file_of(std::string("{\"\xff\":1}"), 0), "no JSON");
  // As deep as a header may be long.
  EXPECT_REFUSED(file_of("{\"a\":" + std::string(1000000, '['), 0), "unexpected");
  EXPECT_REFUSED(file_of("{\"a\":{\"shape\":" + std::string(1000000, '['), 0), "unexpected");
}

TEST(SafeTensors, FilesThatCannotBeRead) {
  const Folder folder;
  EXPECT_THROW(SafeTensors::open(folder.file("missing")), Error);
  EXPECT_THROW(SafeTensors::open(folder.path().string()), Error);  // a folder
  ASSERT_EQ(mkfifo(folder.file("pipe").c_str(), 0600), 0);
  EXPECT_THROW(SafeTensors::open(folder.file("pipe")), Error);  // and does not wait
  // A file that shrinks after it was opened.
  const std::vector<float> values(1000, 1.0f);
  save_safetensors(folder.file("a"), {{"x", TensorView(values.data(), DType::f32, {1000})}});
  const SafeTensors file = SafeTensors::open(folder.file("a"));
  fs::resize_file(folder.file("a"), 1000);
  EXPECT_THROW(file.get("x"), Error);
}

TEST(SafeTensors, FailedWritesLeaveNothingBehind) {
  const Folder folder;
  const float value = 1;
  const TensorView one(&value, DType::f32, {1});
  EXPECT_THROW(save_safetensors(folder.file("no/such/folder"), {{"x", one}}), Error);
  EXPECT_THROW(save_safetensors(folder.file("a"), {{"x", one}, {"x", one}}), Error);
  EXPECT_THROW(save_safetensors(folder.file("a"), {{"__metadata__", one}}), Error);
  EXPECT_THROW(save_safetensors(folder.file("a"), {{"\xff", one}}), Error);
  EXPECT_THROW(save_safetensors(folder.file("a"), {{"x", TensorView()}}), Error);
  EXPECT_EQ(folder.size(), 0u);
  fs::create_directory(folder.file("taken"));
  EXPECT_THROW(save_safetensors(folder.file("taken"), {{"x", one}}), Error);
  EXPECT_EQ(folder.size(), 1u);
  // An old file stays as it was.
  save_safetensors(folder.file("old"), {{"x", one}});
  const std::string before = read_all(folder.file("old"));
  EXPECT_THROW(save_safetensors(folder.file("old"), {{"y", one}, {"y", one}}), Error);
  EXPECT_EQ(read_all(folder.file("old")), before);
  EXPECT_EQ(folder.size(), 2u);
}

TEST(SafeTensors, AFullDiskIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const std::vector<float> values(1 << 16, 1.0f);
  EXPECT_THROW(save_safetensors("/dev/full", {{"x", TensorView(values.data(), DType::f32, {1 << 16})}}),
               Error);
  EXPECT_TRUE(fs::is_character_file("/dev/full"));  // written in place, not replaced
}

TEST(SafeTensors, ALinkIsFollowed) {
  const Folder folder;
  const float value = 1;
  save_safetensors(folder.file("target"), {});
  fs::create_symlink("target", folder.file("link"));
  save_safetensors(folder.file("link"), {{"x", TensorView(&value, DType::f32, {1})}});
  EXPECT_TRUE(fs::is_symlink(folder.file("link")));
  EXPECT_TRUE(SafeTensors::open(folder.file("target")).has("x"));
}

}  // namespace
}  // namespace posattn
