// Options that several subcommands share.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "runtime/attend.h"
#include "runtime/layers/position_set.h"

namespace posattn::cli {

// --causal stands alone or has a value. Returns `arguments` with "--causal=bottom-right" for each bare one,
// so that it never takes a file name for its value.
std::vector<std::string> with_causal_values(std::vector<std::string> arguments);

// An option with one of a few values, each of which has a name.
template <typename T>
CLI::Option *add_choice(CLI::App &app, const std::string &name, T &value,
                        const std::vector<std::pair<std::string, T>> &choices, const std::string &help) {
  std::string names;
  for (const auto &choice : choices) names += (names.empty() ? "" : "|") + choice.first;
  const auto choose = [&value, name, choices, names](const std::string &text) {
    for (const auto &choice : choices) {
      if (choice.first != text) continue;
      value = choice.second;
      return;
    }
    throw CLI::ValidationError(name, "expected " + names + ", got " + text);
  };
  return app.add_option_function<std::string>(name, choose, help)->type_name(names);
}

// Where and how anything runs.
struct MachineOptions {
  std::string target;
  bool cuda = false;  // on a GPU
  int threads = 0;

  void add_to(CLI::App &app);
  void apply() const;  // sets the library's target and number of threads
};

// What attend and mha have in common.
struct AttentionOptions {
  std::string in, out;
  std::vector<std::string> positions;
  PositionOptions position_options;
  bool rope_frequencies = false;  // --rope-base or --rope-dim was given
  Causal causal = Causal::none;
  int64_t window_left = -1, window_right = -1;
  float softcap = 0;
  std::optional<float> scale;
  Weights need_weights = Weights::none;
  bool lse = false;
  std::optional<DType> dtype;  // to compute in
  MachineOptions machine;

  // names: what --position may be.
  void add_to(CLI::App &app, const std::vector<std::string> &names);

  // To the fields that AttendArgs and ForwardArgs share.
  template <typename Args>
  void apply_to(Args &args) const {
    args.causal = causal;
    args.window_left = window_left;
    args.window_right = window_right;
    args.softcap = softcap;
    args.scale = scale;
    args.need_weights = need_weights;
  }

 private:
  void add_positions_to(CLI::App &app, const std::vector<std::string> &names);
};

}  // namespace posattn::cli
