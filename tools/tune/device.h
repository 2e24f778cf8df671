// What is measured on: records from elsewhere do not count.
#pragma once

#include <string>

#include "nlohmann/json.hpp"

namespace posattn::tune {

// fingerprint: equal for equal processors and caches, or for equal GPUs, whichever runs the target; cpu or
// gpu: its name for people; cores: that this process may use. A GPU is asked in a process of its own:
// children of one that has used a GPU cannot.
nlohmann::ordered_json describe_device(const std::string &target);

}  // namespace posattn::tune
