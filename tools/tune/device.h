// What a measurement was made on.
#pragma once

#include "nlohmann/json.hpp"

namespace posattn::tune {

// {"fingerprint", "cpu", "cores"}. Machines of one fingerprint have the same processor model, caches and
// instruction sets; how many cores a process may use is not part of it.
nlohmann::ordered_json describe_device();

}  // namespace posattn::tune
