// The main function of programs of generators with inline PTX, or with some for one of their targets, which
// `card` then names.
#include <cstdlib>
#include <iostream>
#include <stdexcept>

#include "Halide.h"
#include "generators/program.h"
#include "lowering/ptx_compile.h"

namespace {

// Exceptions do not cross the stack that Halide lowers on.
class PrintErrors : public Halide::CompileTimeErrorReporter {
 public:
  void warning(const char *text) override { std::cerr << "Warning: " << text; }
  [[noreturn]] void error(const char *text) override {
    std::cerr << text;
    std::exit(1);
  }
};

int compile(const posattn::ProgramArguments &arguments) {
  const Halide::GeneratorContext context{Halide::Target(arguments.target)};
  const auto generator = Halide::Internal::GeneratorRegistry::create(arguments.generator, context);
  if (!generator) throw std::runtime_error("no generator is called " + arguments.generator);
  for (const auto &[name, value] : arguments.parameters) generator->set_generatorparam_value(name, value);
  posattn::compile_ptx(*generator, arguments.function, arguments.folder);
  return 0;
}

}  // namespace

int main(int argc, char **argv) {
  PrintErrors errors;
  Halide::set_custom_compile_time_error_reporter(&errors);
  return posattn::run_program(argc, argv, [&](const posattn::ProgramArguments &arguments) {
    if (arguments.parameters.count("card") > 0) return compile(arguments);
    return Halide::Internal::generate_filter_main(argc, argv);
  });
}
