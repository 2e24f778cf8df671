#include "lowering/inline_ptx.h"

#include <algorithm>
#include <cctype>
#include <stdexcept>

namespace posattn {
namespace {

using Halide::Internal::Call;

constexpr const char *kPrefix = "posattn_ptx_";

bool in_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

bool starts_with(const std::string &text, const char *start) { return text.rfind(start, 0) == 0; }

}  // namespace

std::string InlinePtx::name_of(const Op &op) {
  const std::string key = (op.is_token ? "token " : "value ") + op.text;
  const auto [at, is_new] = names_.emplace(key, kPrefix + std::to_string(ops_.size()));
  if (is_new) ops_[at->second] = op;
  return at->second;
}

Halide::Expr InlinePtx::pure(Halide::Type result, const std::string &text,
                             const std::vector<Expr> &arguments) {
  return Call::make(result, name_of({text, false}), arguments, Call::PureExtern);
}

Halide::Expr InlinePtx::read(Halide::Type result, const std::string &text,
                             const std::vector<Expr> &arguments) {
  return Call::make(result, name_of({text, false}), arguments, Call::Extern);
}

Halide::Expr InlinePtx::effect(const std::string &text, const std::vector<Expr> &arguments) {
  return Call::make(Halide::Int(32), name_of({text, true}), arguments, Call::Extern);
}

const InlinePtx::Op *InlinePtx::find_op(const std::string &text, size_t begin, size_t end) const {
  const size_t at = text.find(kPrefix, begin);
  if (at == std::string::npos || at >= end) return nullptr;
  size_t name_end = at;
  while (in_name(text[name_end])) name_end++;
  const auto found = ops_.find(text.substr(at, name_end - at));
  if (found == ops_.end()) throw std::runtime_error("inline ptx: unknown " + text.substr(at, name_end - at));
  return &found->second;
}

// One pass over the text, line by line.
class Splicer {
 public:
  Splicer(const InlinePtx &ptx, const InlinePtx::Head &head, const std::string &in)
      : ptx_(ptx), head_(head), in_(in) {}

  std::string run() {
    while (at_ < in_.size()) {
      const std::string line = in_.substr(at_, line_end(at_) - at_);
      if (starts_with(line, ".version")) {
        replace_line(".version " + head_.version + "\n");
      } else if (starts_with(line, ".target")) {
        replace_line(".target " + head_.target + "\n");
      } else if (starts_with(line, ".address_size")) {
        replace_line(line + ptx_.module_);
      } else if (starts_with(line, ".extern .func")) {
        declaration(line);
      } else if (starts_with(line, ".visible .entry")) {
        kernel_ = out_.size();
        before_body_ = true;
        replace_line(line);
      } else if (before_body_ && line == "{\n") {
        replace_line(head_.directives + line + ptx_.registers_);
        before_body_ = false;
        before_code_ = true;
      } else if (before_code_ && starts_with(line, "// %bb.0:")) {
        replace_line(line + ptx_.entry_);
        before_code_ = false;
      } else if (line.find("{ // callseq") != std::string::npos) {
        call(line);
      } else if (head_.starts_early && !starts_with(line, "\t")) {
        has_waited_ = false;  // a label, where control may come from anywhere
        replace_line(line);
      } else if (head_.starts_early && line.find(".global.") != std::string::npos &&
                 line.find("cvta") == std::string::npos) {
        std::string access = line;
        if (const size_t nc = access.find(".global.nc"); nc != std::string::npos) access.erase(nc + 7, 3);
        replace_line((has_waited_ ? "" : "\tgriddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;\n") +
                     access);
        has_waited_ = true;
      } else {
        replace_line(line);
      }
    }
    return out_;
  }

 private:
  size_t line_end(size_t from) const {
    const size_t end = in_.find('\n', from);
    return end == std::string::npos ? in_.size() : end + 1;
  }

  void replace_line(const std::string &text) {
    out_ += text;
    at_ = line_end(at_);
  }

  // The declaration of an extern function: those of the templates vanish.
  void declaration(const std::string &line) {
    const size_t end = in_.find(";\n", at_);
    if (end == std::string::npos || !ptx_.find_op(in_, at_, end)) return replace_line(line);
    at_ = end + 2;
  }

  // A call: parameters are stored, the function is called, the result is loaded.
  void call(const std::string &line) {
    const size_t end = in_.find("} // callseq", at_);
    if (end == std::string::npos) throw std::runtime_error("inline ptx: a call sequence has no end");
    const InlinePtx::Op *op = ptx_.find_op(in_, at_, end);
    if (!op) return replace_line(line);
    const std::string body = in_.substr(at_, end - at_);
    at_ = line_end(end);

    std::map<int, std::string> arguments;
    for (size_t x = body.find("st.param"); x != std::string::npos; x = body.find("st.param", x + 1)) {
      const size_t name = body.find("[param", x), close = body.find(']', name), stop = body.find(';', close);
      std::string value = body.substr(close + 2, stop - close - 2);
      value.erase(0, value.find_first_not_of(" \t"));
      arguments[std::stoi(body.substr(name + 6, close - name - 6))] = value;
    }
    std::string result;
    if (const size_t x = body.find("ld.param"); x != std::string::npos) {
      const size_t name = body.find('%', x);
      result = body.substr(name, body.find(',', name) - name);
    }
    // A value that nothing uses.
    if (result.empty() && !op->is_token) return;
    const std::string text = filled(op->text, arguments, result.empty() ? "_" : result);
    out_ += text;
    if (text.empty() || text.back() != '\n') out_ += '\n';
    if (op->is_token && !result.empty()) out_ += "\tmov.b32 \t" + result + ", 0;\n";
    count_++;
  }

  std::string filled(const std::string &text, const std::map<int, std::string> &arguments,
                     const std::string &result) {
    std::string out;
    for (size_t i = 0; i < text.size(); i++) {
      if (text[i] != '$') {
        out += text[i];
        continue;
      }
      const char c = text[++i];
      if (c == 'r') {
        out += result;
      } else if (c == 'u') {
        out += std::to_string(count_);
      } else {
        const bool is_address = c == '@';
        if (is_address) i++;
        size_t digits = 0;
        const int n = std::stoi(text.substr(i), &digits);
        i += digits - 1;
        const auto value = arguments.find(n);
        if (value == arguments.end())
          throw std::runtime_error("inline ptx: no argument " + std::to_string(n) + " in " + text);
        // Glued to a register's name, an argument must be a number.
        if (!out.empty() && in_name(out.back()) &&
            !std::isdigit(static_cast<unsigned char>(value->second[0]))) {
          throw std::runtime_error("inline ptx: not a constant: " + value->second + " in " + text);
        }
        if (is_address) pass_by_value(value->second);
        out += value->second;
      }
    }
    return out;
  }

  // Turns the parameter that `reg` was loaded from into one passed by value, and the load into its address.
  void pass_by_value(const std::string &reg) {
    const std::string moved = "\tmov.b64 \t" + reg + ", ";
    if (out_.find(moved, kernel_) != std::string::npos) return;  // another use of the same one
    const size_t load = out_.find("\tld.param.b64 \t" + reg + ", [", kernel_);
    const size_t other =
        load != std::string::npos ? load : out_.find("\tld.param.u64 \t" + reg + ", [", kernel_);
    if (other == std::string::npos)
      throw std::runtime_error("inline ptx: " + reg + " is not a kernel's argument");
    const size_t open = out_.find('[', other), close = out_.find(']', open), end = out_.find('\n', close);
    const std::string name = out_.substr(open + 1, close - open - 1);
    out_.replace(other, end - other, moved + name + ";\n\tcvta.param.u64 \t" + reg + ", " + reg + ";");
    for (const char *type : {"\t.param .u64 ", "\t.param .b64 "}) {
      std::string declaration = type + name;
      const size_t at = out_.find(declaration, kernel_);
      if (at == std::string::npos || in_name(out_[at + declaration.size()])) continue;
      out_.replace(at, declaration.size(), "\t.param .align 64 .b8 " + name + "[128]");
      return;
    }
    // Already so, for another load of it.
    if (out_.find(" " + name + "[128]", kernel_) == std::string::npos) {
      throw std::runtime_error("inline ptx: no parameter " + name);
    }
  }

  const InlinePtx &ptx_;
  const InlinePtx::Head &head_;
  const std::string &in_;
  std::string out_;
  size_t at_ = 0, kernel_ = 0;
  bool before_body_ = false, before_code_ = false, has_waited_ = false;
  int count_ = 0;
};

std::string InlinePtx::splice(const std::string &ptx, const Head &head) const {
  return Splicer(*this, head, ptx).run();
}

}  // namespace posattn
