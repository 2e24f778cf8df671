#include "tools/posattn/options.h"

#include <algorithm>
#include <charconv>

#include "runtime/cuda/targets.h"
#include "runtime/error.h"
#include "runtime/kernel_registry.h"
#include "runtime/threads.h"

namespace posattn::cli {
namespace {

const std::vector<std::pair<std::string, Causal>> kCausal = {
    {"bottom-right", Causal::bottom_right}, {"top-left", Causal::top_left}, {"none", Causal::none}};

int64_t parse_bound(const std::string &text, const std::string &whole) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < -1)
    fail("--window: expected L,R with whole numbers from -1 (unbounded), got ", whole);
  return value;
}

bool contains(const std::vector<std::string> &names, const std::string &name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

std::vector<std::string> with_causal_values(std::vector<std::string> arguments) {
  const std::string name = "--causal";
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--") break;
    if (arguments[i] != name) continue;
    const bool has_value = i + 1 < arguments.size() &&
                           std::any_of(kCausal.begin(), kCausal.end(),
                                       [&](const auto &choice) { return choice.first == arguments[i + 1]; });
    if (!has_value) arguments[i] += "=bottom-right";
  }
  return arguments;
}

void MachineOptions::add_to(CLI::App &app) {
  app.add_option_function<std::string>(
         "--device",
         [this](const std::string &device) {
           if (device != "cpu" && device != "cuda") {
             throw CLI::ValidationError("--device", "expected cpu|cuda, got " + device);
           }
           cuda = device == "cuda";
         },
         "Where to compute (cpu)")
      ->type_name("cpu|cuda");
  app.add_option("--target", target, "Kernels to use, such as avx2; an error if this machine lacks them")
      ->type_name("NAME");
  app.add_option("--threads", threads, "Threads; 0, the default, is one a core")
      ->check(CLI::Range(0, 4096))
      ->type_name("N");
}

void MachineOptions::apply() const {
  set_num_threads(threads);
  cuda ? set_cuda_target(target) : set_target(target);
}

void AttentionOptions::add_to(CLI::App &app, const std::vector<std::string> &names) {
  app.add_option("-o,--out", out, "File to write")->required()->type_name("OUT.safetensors");
  add_positions_to(app, names);

  add_choice(app, "--causal", causal, kCausal,
             "Hide the future (none); --causal alone is bottom-right: a chunk sees its past");
  app.add_option_function<std::string>(
         "--window",
         [this](const std::string &text) {
           const size_t comma = std::min(text.find(','), text.size());
           window_left = parse_bound(text.substr(0, comma), text);
           window_right = parse_bound(text.substr(std::min(comma + 1, text.size())), text);
         },
         "See L keys to the left and R to the right; -1 is unbounded")
      ->type_name("L,R");
  app.add_option("--softcap", softcap, "Logits become C * tanh(logit / C)")->type_name("C");
  app.add_option("--scale", scale, "Of the logits (1 / sqrt(head dimension))")->type_name("S");

  add_choice<Weights>(app, "--need-weights", need_weights,
                      {{"none", Weights::none}, {"mean", Weights::mean}, {"heads", Weights::heads}},
                      "Write the attention weights, too: of all heads or their mean (none)");
  app.add_flag("--lse", lse, "Write the log of the sum of exponentials of each row, too");
  app.add_option_function<std::string>(
         "--dtype",
         [this](const std::string &text) {
           for (const DType type : {DType::f32, DType::bf16, DType::f16})
             if (text == name_of(type)) dtype = type;
           if (!dtype) throw CLI::ValidationError("--dtype", "expected f32|bf16|f16, got " + text);
         },
         "Compute in this type (the one that the input is stored in)")
      ->type_name("f32|bf16|f16");
  machine.add_to(app);
}

void AttentionOptions::add_positions_to(CLI::App &app, const std::vector<std::string> &names) {
  std::string known;
  for (const std::string &name : names) known += (known.empty() ? "" : "|") + name;
  app.add_option("--position", positions, "A positional branch; repeat the option to combine several")
      ->allow_extra_args(false)
      ->type_name(known)
      ->check([names, known](const std::string &name) {
        return contains(names, name) ? "" : "expected " + known + ", got " + name;
      });

  PositionOptions &o = position_options;
  // What an option belongs to. An option that would have no effect is an error, not a surprise.
  const std::vector<std::pair<CLI::Option *, std::string>> owners = {
      {add_choice<Relative::Sign>(app, "--relative-sign", o.relative_sign,
                                  {{"minus", Relative::Sign::minus}, {"plus", Relative::Sign::plus}},
                                  "The relative table is subtracted (minus) or added"),
       "relative"},
      {add_choice<Rope::Layout>(
           app, "--rope-layout", o.rope_layout,
           {{"interleaved", Rope::Layout::interleaved}, {"half", Rope::Layout::half}},
           "Pairs (x0,x1), (x2,x3), .. (interleaved) or each x with the one half a rotary dimension on"),
       "rope"},
      {app.add_option("--rope-base", o.rope_base, "Base of the frequencies (10000)")->type_name("X"), "rope"},
      {app.add_option("--rope-dim", o.rope_dim, "Channels of a head to rotate (all)")
           ->check(CLI::PositiveNumber)
           ->type_name("N"),
       "rope"},
      {app.add_option("--t5-max-distance", o.t5_max_distance, "From where on all is one bucket (128)")
           ->type_name("N"),
       "t5"},
      {add_choice<bool>(app, "--t5-bidirectional", o.t5_bidirectional, {{"true", true}, {"false", false}},
                        "The buckets tell past from future (true)"),
       "t5"}};
  app.parse_complete_callback([this, owners] {
    for (const auto &[option, owner] : owners)
      if (option->count() && !contains(positions, owner))
        fail(option->get_name(), ": needs --position ", owner);
    for (const auto &[option, owner] : owners)
      rope_frequencies |=
          option->count() && (option->get_name() == "--rope-base" || option->get_name() == "--rope-dim");
    if (contains(positions, "none") && positions.size() > 1)
      fail("--position none: does not go with other branches");
    for (size_t i = 0; i < positions.size(); ++i)
      if (std::count(positions.begin(), positions.end(), positions[i]) > 1)
        fail("--position ", positions[i], ": given more than once");
  });
}

}  // namespace posattn::cli
