#include "runtime/layers/layer_weights.h"

#include <sstream>

#include "runtime/error.h"

namespace posattn {
namespace {

struct Modules {
  const char *names;
  const char *query, *key, *value, *out;
};

constexpr Modules kModules[] = {
    {"q_proj, k_proj, v_proj, out_proj", "q_proj", "k_proj", "v_proj", "out_proj"},
    {"q_proj, k_proj, v_proj, o_proj", "q_proj", "k_proj", "v_proj", "o_proj"},
    {"query, key, value, out", "query", "key", "value", "out"},
    {"self.query, self.key, self.value, output.dense", "self.query", "self.key", "self.value",
     "output.dense"},
    {"q, k, v, o", "q", "k", "v", "o"},
};

constexpr const char *kNested[] = {"", "attn.", "self_attn.", "attention.", "SelfAttention."};

std::string dotted(const std::string &prefix) {
  return prefix.empty() || prefix.back() == '.' ? prefix : prefix + '.';
}

TensorView need(const SafeTensors &file, const std::string &name, const std::string &beside) {
  if (!file.has(name)) fail("weights: '", name, "' is missing beside '", beside, "'");
  return file.get(name);
}

void expect(const std::string &name, const TensorView &tensor, std::initializer_list<int64_t> shape) {
  const DType type = tensor.dtype();
  if (type != DType::f32 && type != DType::bf16 && type != DType::f16 && type != DType::f64) {
    fail("weights: '", name, "': expected floating-point numbers, got ", name_of(type));
  }
  bool same = tensor.rank() == static_cast<int>(shape.size());
  std::ostringstream expected;
  int dim = 0;
  for (int64_t size : shape) {  // -1: any
    same = same && (size < 0 || tensor.size(dim) == size);
    expected << (dim++ ? ", " : "(") << (size < 0 ? "any" : std::to_string(size));
  }
  if (!same) fail("weights: '", name, "': expected ", expected.str(), "), got ", tensor.shape_text());
}

// One prefix, one naming scheme. Every tensor that is read is checked against E and the others.
class Reader {
 public:
  Reader(const SafeTensors &file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  bool has(const std::string &name) const { return file_.has(prefix_ + name); }

  LayerWeights packed() const {
    LayerWeights w;
    const std::string name = prefix_ + "in_proj_weight";
    const TensorView all = file_.get(name);
    expect(name, all, {-1, -1});
    const int64_t dim = all.size(1);
    expect(name, all, {3 * dim, dim});
    w.query = all.slice(0, 0, dim);
    w.key = all.slice(0, dim, 2 * dim);
    w.value = all.slice(0, 2 * dim, 3 * dim);
    torch_rest(w, name);
    w.names = "in_proj_weight";
    return w;
  }

  LayerWeights separate() const {
    LayerWeights w;
    const std::string name = prefix_ + "q_proj_weight";
    w.query = file_.get(name);
    w.key = need(file_, prefix_ + "k_proj_weight", name);
    w.value = need(file_, prefix_ + "v_proj_weight", name);
    expect(name, w.query, {-1, -1});
    const int64_t dim = w.query.size(1);
    expect(name, w.query, {dim, dim});
    expect(prefix_ + "k_proj_weight", w.key, {dim, -1});
    expect(prefix_ + "v_proj_weight", w.value, {dim, -1});
    torch_rest(w, name);
    w.names = "q_proj_weight, k_proj_weight, v_proj_weight";
    return w;
  }

  LayerWeights modules(const Modules &m) const {
    LayerWeights w;
    const std::string beside = prefix_ + m.query + ".weight";
    const auto weight = [&](const char *module) { return need(file_, prefix_ + module + ".weight", beside); };
    const auto name = [&](const char *module) { return prefix_ + module + ".weight"; };
    w.query = weight(m.query);
    w.key = weight(m.key);
    w.value = weight(m.value);
    w.out = weight(m.out);
    expect(name(m.query), w.query, {-1, -1});
    const int64_t dim = w.query.size(1);
    expect(name(m.query), w.query, {dim, dim});
    expect(name(m.key), w.key, {-1, -1});
    expect(name(m.value), w.value, {w.key.size(0), -1});
    expect(name(m.out), w.out, {dim, dim});
    w.query_bias = bias(m.query, dim);
    w.key_bias = bias(m.key, w.key.size(0));
    w.value_bias = bias(m.value, w.key.size(0));
    w.out_bias = bias(m.out, dim);
    extra_keys(w);
    w.names = m.names;
    return w;
  }

 private:
  // What torch.nn.MultiheadAttention keeps in one place for both of its forms.
  void torch_rest(LayerWeights &w, const std::string &beside) const {
    const int64_t dim = w.query.size(0);
    if (has("in_proj_bias")) {
      const TensorView all = file_.get(prefix_ + "in_proj_bias");
      expect(prefix_ + "in_proj_bias", all, {3 * dim});
      w.query_bias = all.slice(0, 0, dim);
      w.key_bias = all.slice(0, dim, 2 * dim);
      w.value_bias = all.slice(0, 2 * dim, 3 * dim);
    }
    w.out = need(file_, prefix_ + "out_proj.weight", beside);
    expect(prefix_ + "out_proj.weight", w.out, {dim, dim});
    w.out_bias = bias("out_proj", dim);
    extra_keys(w);
  }

  void extra_keys(LayerWeights &w) const {
    if (!has("bias_k") && !has("bias_v")) return;
    w.bias_k = need(file_, prefix_ + "bias_k", prefix_ + "bias_v");
    w.bias_v = need(file_, prefix_ + "bias_v", prefix_ + "bias_k");
    expect(prefix_ + "bias_k", w.bias_k, {1, 1, w.key.size(0)});
    expect(prefix_ + "bias_v", w.bias_v, {1, 1, w.key.size(0)});
  }

  TensorView bias(const char *module, int64_t size) const {
    const std::string name = prefix_ + module + ".bias";
    if (!file_.has(name)) return {};
    const TensorView found = file_.get(name);
    expect(name, found, {size});
    return found;
  }

  const SafeTensors &file_;
  std::string prefix_;
};

}  // namespace

LayerWeights find_layer_weights(const SafeTensors &file, const std::string &prefix) {
  for (const char *nested : kNested) {
    const std::string place = dotted(prefix) + nested;
    const Reader reader(file, place);
    const auto found = [&](LayerWeights w) {
      w.prefix = place;
      return w;
    };
    if (reader.has("in_proj_weight")) return found(reader.packed());
    if (reader.has("q_proj_weight")) return found(reader.separate());
    for (const Modules &modules : kModules) {
      if (!reader.has(std::string(modules.query) + ".weight")) continue;
      // q_proj is common to two schemes: the output projection tells them apart, and if neither is there
      // the first one's message says so.
      if (&modules == &kModules[0] && !reader.has("out_proj.weight") && reader.has("o_proj.weight")) continue;
      return found(reader.modules(modules));
    }
  }
  std::ostringstream text;
  text << "weights: no attention layer under '" << dotted(prefix) << "'; looked for in_proj_weight, "
       << "q_proj_weight";
  for (const Modules &modules : kModules) {
    if (&modules != &kModules[1]) text << ", " << modules.query << ".weight";
  }
  text << ", there or in";
  for (const char *nested : kNested) text << (*nested ? " " : "") << nested;
  const auto names = file.names();
  text << "; the file holds " << names.size() << " tensors";
  for (size_t i = 0; i < names.size() && i < 8; i++) text << (i ? ", " : ": ") << names[i];
  if (names.size() > 8) text << ", ...";
  throw Error(text.str());
}

}  // namespace posattn
