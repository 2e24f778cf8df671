// What every program of generators does besides compiling.
#pragma once

#include <functional>
#include <map>
#include <string>

namespace posattn {

// -g GENERATOR -f FUNCTION -o FOLDER -e static_library target=TARGET [PARAMETER=VALUE ...]
struct ProgramArguments {
  std::string generator, function, folder, target;
  std::map<std::string, std::string> parameters;
};

// The main function. compile() is for a generator whose parameters are feasible; it throws, or returns the
// exit status. Or else, without compiling,
//
//   PROGRAM --tuning-space GENERATOR target=TARGET [PARAMETER=VALUE ...]
//
// prints as JSON what the generator's schedule leaves open (schedules/tuning_space.h), and whether the values
// given are feasible.
int run_program(int argc, char **argv, const std::function<int(const ProgramArguments &)> &compile);

}  // namespace posattn
