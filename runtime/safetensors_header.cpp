#include "runtime/safetensors_header.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "runtime/error.h"

namespace posattn {
namespace {

struct TypeInfo {
  const char *name;
  std::optional<DType> type;
  int bits;
};

constexpr TypeInfo kTypes[] = {
    {"F32", DType::f32, 32},      {"BF16", DType::bf16, 16},    {"F16", DType::f16, 16},
    {"F64", DType::f64, 64},      {"I64", DType::i64, 64},      {"I32", DType::i32, 32},
    {"BOOL", DType::boolean, 8},  {"U8", std::nullopt, 8},      {"I8", std::nullopt, 8},
    {"U16", std::nullopt, 16},    {"I16", std::nullopt, 16},    {"U32", std::nullopt, 32},
    {"U64", std::nullopt, 64},    {"F8_E5M2", std::nullopt, 8}, {"F8_E4M3", std::nullopt, 8},
    {"F8_E8M0", std::nullopt, 8}, {"C64", std::nullopt, 64},
};

// Reads the header as a stream of events, so that nothing is kept but the entries, and repeated keys are
// seen.
class Reader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Reader(const std::string &file) : file_(file) {}

  std::vector<SafeTensorsEntry> entries;

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::begin:
        return go(State::names);
      case State::entry:
        return go(State::fields);
      case State::metadata:
        return go(State::metadata_keys);
      default:
        unexpected("an object");
    }
  }
  bool end_object() override {
    switch (state_) {
      case State::names:
        return go(State::end);
      case State::metadata_keys:
        return go(State::names);
      case State::fields:
        if (seen_ != (kType | kShape | kOffsets)) {
          fail(file_, ": ", quoted(), ": expected dtype, shape and data_offsets");
        }
        check_size();
        return go(State::names);
      default:
        unexpected("the end of an object");
    }
  }
  bool key(string_t &text) override {
    if (state_ == State::names) {
      if (!names_.insert(text).second) fail(file_, ": two entries are called '", printable(text), "'");
      if (text == "__metadata__") return go(State::metadata);
      entries.emplace_back();
      entries.back().name = text;
      seen_ = 0;
      elements_ = 1;
      has_zero_ = false;
      return go(State::entry);
    }
    if (state_ == State::metadata_keys) return go(State::metadata_value);
    if (state_ == State::fields) {
      if (text == "dtype") return field(kType, State::type);
      if (text == "shape") return field(kShape, State::shape);
      if (text == "data_offsets") return field(kOffsets, State::offsets);
      fail(file_, ": ", quoted(), ": expected dtype, shape or data_offsets, got '", printable(text), "'");
    }
    unexpected("a key");
  }
  bool string(string_t &text) override {
    if (state_ == State::metadata_value) return go(State::metadata_keys);
    if (state_ != State::type) unexpected("a string");
    const auto known =
        std::find_if(std::begin(kTypes), std::end(kTypes), [&](const TypeInfo &t) { return text == t.name; });
    if (known == std::end(kTypes)) fail(file_, ": ", quoted(), ": '", printable(text), "' is no known dtype");
    entries.back().type = known->type;
    entries.back().type_name = text;
    bits_ = known->bits;
    return go(State::fields);
  }
  bool start_array(std::size_t) override {
    if (state_ == State::shape) return go(State::shape_values);
    if (state_ == State::offsets) {
      num_offsets_ = 0;
      return go(State::offset_values);
    }
    unexpected("an array");
  }
  bool end_array() override {
    if (state_ == State::offset_values && num_offsets_ != 2) {
      fail(file_, ": ", quoted(), ": data_offsets: expected two numbers, got ", num_offsets_);
    }
    return go(State::fields);  // the parser pairs brackets, and only these two states are inside one
  }
  bool number_unsigned(number_unsigned_t value) override {
    SafeTensorsEntry *entry = entries.empty() ? nullptr : &entries.back();
    if (state_ == State::shape_values) {
      if (value > INT64_MAX) fail(file_, ": ", quoted(), ": shape: ", value, " is out of range");
      if (entry->rank < kMaxRank) entry->shape[entry->rank] = static_cast<int64_t>(value);
      ++entry->rank;
      has_zero_ |= value == 0;
      elements_ = checked_product(elements_, value == 0 ? 1 : static_cast<int64_t>(value), file_.c_str());
      return true;
    }
    if (state_ == State::offset_values) {
      if (num_offsets_ == 0) entry->begin = value;
      if (num_offsets_ == 1) entry->end = value;
      ++num_offsets_;
      return true;
    }
    unexpected("a number");
  }
  bool number_integer(number_integer_t value) override {
    fail(file_, ": ", quoted(), ": ", value, " is out of range");
  }
  bool number_float(number_float_t, const string_t &text) override {
    fail(file_, ": ", quoted(), ": expected an integer, got ", text);
  }
  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool binary(binary_t &) override { unexpected("binary data"); }
  bool parse_error(std::size_t position, const std::string &, const nlohmann::json::exception &) override {
    fail(file_, ": the header is no JSON, at its byte ", position);
  }

 private:
  enum class State {
    begin,
    names,
    metadata,
    metadata_keys,
    metadata_value,
    entry,
    fields,
    type,
    shape,
    shape_values,
    offsets,
    offset_values,
    end,
  };
  static constexpr int kType = 1, kShape = 2, kOffsets = 4;

  bool go(State state) {
    state_ = state;
    return true;
  }
  bool field(int bit, State state) {
    if (seen_ & bit) fail(file_, ": ", quoted(), ": a field is there twice");
    seen_ |= bit;
    return go(state);
  }
  void check_size() const {
    const SafeTensorsEntry &entry = entries.back();
    const int64_t bytes = has_zero_ ? 0 : checked_product(elements_, bits_ / 8, file_.c_str());
    if (entry.end < entry.begin || entry.end - entry.begin != static_cast<uint64_t>(bytes)) {
      fail(file_, ": ", quoted(), ": data_offsets: expected ", bytes, " bytes for its shape and dtype, got [",
           entry.begin, ", ", entry.end, ")");
    }
  }
  [[noreturn]] void unexpected(const char *what) const {
    fail(file_, ": the header is not of the safetensors form: unexpected ", what,
         entries.empty() ? std::string() : " at " + quoted());
  }
  std::string quoted() const {
    return entries.empty() ? "header" : "'" + printable(entries.back().name) + "'";
  }
  static std::string printable(const std::string &text) {
    constexpr size_t kLongest = 200;
    return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
  }

  const std::string &file_;
  State state_ = State::begin;
  std::unordered_set<std::string> names_;
  int seen_ = 0, num_offsets_ = 0, bits_ = 0;
  int64_t elements_ = 1;  // of the entry at hand, zeros left out
  bool has_zero_ = false;
};

}  // namespace

std::vector<SafeTensorsEntry> parse_safetensors_header(const char *json, size_t size, uint64_t data_size,
                                                       const std::string &file) {
  if (size == 0 || json[0] != '{') fail(file, ": the header does not start with '{'");
  Reader reader(file);
  nlohmann::json::sax_parse(json, json + size, &reader);

  std::vector<SafeTensorsEntry> entries = std::move(reader.entries);
  std::sort(entries.begin(), entries.end(), [](const auto &a, const auto &b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t position = 0;
  for (const SafeTensorsEntry &entry : entries) {
    if (entry.end > data_size) {
      fail(file, ": '", entry.name, "' ends at byte ", entry.end, " of ", data_size,
           ": the file is truncated");
    }
    if (entry.begin != position) {
      fail(file, ": '", entry.name, "' ", entry.begin < position ? "overlaps another tensor" : "leaves a gap",
           ": expected it at byte ", position, ", got ", entry.begin);
    }
    position = entry.end;
  }
  if (position != data_size) {
    fail(file, ": expected ", position, " bytes of tensors, got ", data_size);
  }
  return entries;
}

const char *safetensors_type(DType type) {
  for (const TypeInfo &info : kTypes) {
    if (info.type == type) return info.name;
  }
  fail("safetensors: no name for type ", name_of(type));
}
}  // namespace posattn
