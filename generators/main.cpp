// The main function of every program of generators: Halide's own compiles.
#include "Halide.h"
#include "generators/program.h"

int main(int argc, char **argv) {
  return posattn::run_program(argc, argv, [&](const posattn::ProgramArguments &) {
    return Halide::Internal::generate_filter_main(argc, argv);
  });
}
