// The subcommands. Each of these adds one to the command line; it runs when the line has been parsed. What is
// wrong with the arguments or the files throws.
#pragma once

#include "CLI/CLI.hpp"

namespace posattn::cli {

void add_attend(CLI::App &app);
void add_mha(CLI::App &app);
void add_kernels(CLI::App &app);
void add_verify(CLI::App &app);
void add_bench(CLI::App &app);

}  // namespace posattn::cli
