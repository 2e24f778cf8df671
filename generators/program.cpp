#include "generators/program.h"

#include <algorithm>
#include <iostream>
#include <memory>
#include <stdexcept>

#include "Halide.h"
#include "nlohmann/json.hpp"
#include "schedules/tuning_space.h"

namespace posattn {
namespace {

using nlohmann::ordered_json;
using schedules::TuningPoint;
using schedules::TuningSpace;

struct Parsed {
  bool describe = false;
  ProgramArguments arguments;
};

Parsed parse(int argc, char **argv) {
  Parsed parsed;
  ProgramArguments &out = parsed.arguments;
  for (int i = 1; i < argc; i++) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (argument[0] == '-' && i + 1 < argc) {
      const std::string value = argv[++i];
      if (argument == "-g") out.generator = value;
      if (argument == "-f") out.function = value;
      if (argument == "-o") out.folder = value;
      if (argument == "--tuning-space") parsed.describe = true, out.generator = value;
    } else if (equals != std::string::npos) {
      const std::string name = argument.substr(0, equals), value = argument.substr(equals + 1);
      (name == "target" ? out.target : out.parameters[name]) = value;
    }
  }
  return parsed;
}

// Null if the generator cannot be tuned.
std::unique_ptr<TuningSpace> space_of(const ProgramArguments &arguments) {
  const Halide::GeneratorContext context{Halide::Target(arguments.target)};
  const auto generator = Halide::Internal::GeneratorRegistry::create(arguments.generator, context);
  if (!generator) return nullptr;
  for (const auto &[name, value] : arguments.parameters) generator->set_generatorparam_value(name, value);
  generator->arginfos();  // configures it: parameters cannot be read before
  const auto *tunable = dynamic_cast<const schedules::Tunable *>(generator.get());
  return tunable ? std::make_unique<TuningSpace>(tunable->tuning_space()) : nullptr;
}

TuningPoint point_of(const TuningSpace &space, const ProgramArguments &arguments) {
  TuningPoint point;
  for (const auto &parameter : space.parameters) {
    const auto given = arguments.parameters.find(parameter.name);
    point[parameter.name] = given == arguments.parameters.end() ? parameter.value : std::stoi(given->second);
  }
  return point;
}

// A build that gives no values takes those chosen by hand, whatever the rules for a search say.
bool gives_values(const TuningSpace &space, const ProgramArguments &arguments) {
  return std::any_of(space.parameters.begin(), space.parameters.end(),
                     [&](const auto &parameter) { return arguments.parameters.count(parameter.name) > 0; });
}

std::string infeasible(const TuningSpace &space, const TuningPoint &point) {
  return space.infeasible ? space.infeasible(point) : "";
}

void describe(const TuningSpace &space, const ProgramArguments &arguments) {
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
                      {"timed", timed},
                      {"most", ordered_json(shape.most)}});
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

int run_program(int argc, char **argv, const std::function<int(const ProgramArguments &)> &compile) {
  const auto [is_description, arguments] = parse(argc, argv);
  try {
    if (!arguments.generator.empty()) {
      const std::unique_ptr<TuningSpace> space = space_of(arguments);
      if (is_description) {
        describe(space ? *space : TuningSpace(), arguments);
        return 0;
      }
      const bool given = space && gives_values(*space, arguments);
      const std::string reason = given ? infeasible(*space, point_of(*space, arguments)) : "";
      if (!reason.empty()) throw std::runtime_error(arguments.generator + ": " + reason);
    }
    return compile(arguments);
  } catch (const std::exception &error) {
    std::cerr << argv[0] << ": " << error.what() << '\n';
    return 1;
  }
}

}  // namespace posattn
