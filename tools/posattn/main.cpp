// posattn: attention on files of tensors, and what the library's kernels are, compute and cost on this
// machine.
#include <algorithm>
#include <iostream>

#include "runtime/error.h"
#include "tools/posattn/commands.h"
#include "tools/posattn/options.h"

namespace {

constexpr int kBadArguments = 2;

// CLI11's messages may span lines; ours are one.
std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

// CLI11 has no words of its own for these.
void check_first(const CLI::App &app, const std::vector<std::string> &arguments) {
  for (const std::string &argument : arguments)
    if (argument.empty()) posattn::fail("expected no empty argument");
  const std::string first = arguments.empty() ? "nothing" : arguments[0];
  if (first[0] == '-') return;
  std::string names;
  for (const CLI::App *command : app.get_subcommands({})) {
    if (command->get_name() == first) return;
    names += (names.empty() ? "" : "|") + command->get_name();
  }
  posattn::fail("expected a subcommand, ", names, ", got ", first);
}

int run(int argc, char **argv) {
  CLI::App app(
      "Positional attention: softmax(q k' + positions and masks) v, by kernels compiled ahead of time.",
      "posattn");
  app.require_subcommand(1);
  posattn::cli::add_attend(app);
  posattn::cli::add_mha(app);
  posattn::cli::add_kernels(app);
  posattn::cli::add_verify(app);
  posattn::cli::add_bench(app);
  std::vector<std::string> arguments = posattn::cli::with_causal_values({argv + 1, argv + argc});
  check_first(app, arguments);
  std::reverse(arguments.begin(), arguments.end());  // the order in which CLI11 takes a vector
  try {
    app.parse(arguments);
  } catch (const CLI::RuntimeError &status) {
    return status.get_exit_code();  // a command that has said what it had to say
  } catch (const CLI::Success &help) {
    return app.exit(help);
  }
  std::cout.flush();
  if (!std::cout) posattn::fail("standard output cannot be written");
  return 0;
}

}  // namespace

int main(int argc, char **argv) {
  try {
    return run(argc, argv);
  } catch (const std::bad_alloc &) {
    std::cerr << "posattn: out of memory\n";
  } catch (const std::exception &error) {
    std::cerr << "posattn: " << one_line(error.what()) << '\n';
  }
  return kBadArguments;
}
