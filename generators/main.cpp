// The main function of every program of generators: Halide's own, and besides
//
//   PROGRAM --tuning-space GENERATOR target=TARGET [PARAMETER=VALUE ...]
//
// prints as JSON what the generator's schedule leaves open (schedules/tuning_space.h), and whether the values
// given are feasible. Infeasible ones are refused when a kernel is compiled, too.
#include <cstring>
#include <iostream>
#include <memory>
#include <stdexcept>

#include "Halide.h"
#include "nlohmann/json.hpp"
#include "schedules/tuning_space.h"

namespace {

using nlohmann::ordered_json;
using posattn::schedules::TuningPoint;
using posattn::schedules::TuningSpace;

struct Arguments {
  bool describe = false;
  std::string generator, target;
  std::map<std::string, std::string> parameters;
};

Arguments parse(int argc, char **argv) {
  Arguments arguments;
  for (int i = 1; i < argc; i++) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if ((argument == "--tuning-space" || argument == "-g") && i + 1 < argc) {
      arguments.describe = argument != "-g";
      arguments.generator = argv[++i];
    } else if (argument[0] != '-' && equals != std::string::npos) {
      const std::string name = argument.substr(0, equals), value = argument.substr(equals + 1);
      if (name == "target") {
        arguments.target = value;
      } else {
        arguments.parameters[name] = value;
      }
    }
  }
  return arguments;
}

// Null if the generator cannot be tuned.
std::unique_ptr<TuningSpace> space_of(const Arguments &arguments) {
  const Halide::GeneratorContext context{Halide::Target(arguments.target)};
  const auto generator = Halide::Internal::GeneratorRegistry::create(arguments.generator, context);
  if (!generator) return nullptr;
  for (const auto &[name, value] : arguments.parameters) generator->set_generatorparam_value(name, value);
  generator->arginfos();  // configures it: parameters cannot be read before
  const auto *tunable = dynamic_cast<const posattn::schedules::Tunable *>(generator.get());
  return tunable ? std::make_unique<TuningSpace>(tunable->tuning_space()) : nullptr;
}

TuningPoint point_of(const TuningSpace &space, const Arguments &arguments) {
  TuningPoint point;
  for (const auto &parameter : space.parameters) {
    const auto given = arguments.parameters.find(parameter.name);
    const int value = given == arguments.parameters.end() ? 0 : std::stoi(given->second);
    point[parameter.name] = value > 0 ? value : parameter.value;
  }
  return point;
}

std::string infeasible(const TuningSpace &space, const TuningPoint &point) {
  return space.infeasible ? space.infeasible(point) : "";
}

void describe(const TuningSpace &space, const Arguments &arguments) {
  ordered_json parameters = ordered_json::array(), shapes = ordered_json::array();
  for (const auto &p : space.parameters) {
    parameters.push_back({{"name", p.name},
                          {"value", p.value},
                          {"low", p.low},
                          {"high", p.high},
                          {"step", p.step},
                          {"times", p.times}});
  }
  for (const auto &shape : space.shapes) {
    ordered_json timed = ordered_json::array();
    for (const auto &call : shape.timed) {
      ordered_json sizes = ordered_json::object();
      for (const auto &[name, size] : call) sizes[name] = size;
      timed.push_back(sizes);
    }
    shapes.push_back({{"name", shape.name},
                      {"max_queries", shape.max_queries},
                      {"max_keys", shape.max_keys},
                      {"timed", timed}});
  }
  const TuningPoint point = point_of(space, arguments);
  const ordered_json all = {
      {"halide", std::to_string(HALIDE_VERSION_MAJOR) + "." + std::to_string(HALIDE_VERSION_MINOR) + "." +
                     std::to_string(HALIDE_VERSION_PATCH)},
      {"parameters", parameters},
      {"shapes", shapes},
      {"point", point},
      {"infeasible", infeasible(space, point)}};
  std::cout << all.dump() << '\n';
}

}  // namespace

int main(int argc, char **argv) {
  const Arguments arguments = parse(argc, argv);
  try {
    if (!arguments.generator.empty()) {
      const std::unique_ptr<TuningSpace> space = space_of(arguments);
      if (arguments.describe) {
        describe(space ? *space : TuningSpace(), arguments);
        return 0;
      }
      const std::string reason = space ? infeasible(*space, point_of(*space, arguments)) : "";
      if (!reason.empty()) throw std::runtime_error(arguments.generator + ": " + reason);
    }
    return Halide::Internal::generate_filter_main(argc, argv);
  } catch (const std::exception &error) {
    std::cerr << argv[0] << ": " << error.what() << '\n';
    return 1;
  }
}
