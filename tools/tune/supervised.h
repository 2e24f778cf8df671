// Work in a process of its own, whose end is a result like any other.
#pragma once

#include <functional>

#include "nlohmann/json.hpp"

namespace posattn::tune {

// What `work` returns, or {"outcome": "crash" or "timeout", "detail"}: a child that ends by a signal or
// without a result has crashed, and one that runs for longer than `seconds` is killed. The caller must have a
// single thread.
nlohmann::ordered_json supervised(const std::function<nlohmann::ordered_json()> &work, double seconds);

}  // namespace posattn::tune
