#include "tools/tune/device.h"

#include <sched.h>
#include <unistd.h>

#include <fstream>
#include <iomanip>
#include <map>
#include <sstream>

#include "runtime/cpu.h"
#include "runtime/cuda/context.h"
#include "runtime/error.h"
#include "tools/posattn/kernel_filter.h"
#include "tools/tune/supervised.h"

namespace posattn::tune {
namespace {

using nlohmann::ordered_json;

// Of the first processor, as Linux describes it.
std::map<std::string, std::string> processor() {
  std::map<std::string, std::string> fields;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t name_end = line.find_last_not_of(" \t", colon - 1),
                 value = line.find_first_not_of(' ', colon + 1);
    fields[line.substr(0, name_end + 1)] = value == std::string::npos ? "" : line.substr(value);
  }
  return fields;
}

int available_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

std::string hex(uint64_t value) {
  std::ostringstream text;
  text << std::hex << std::setw(16) << std::setfill('0') << value;
  return text.str();
}

std::string fingerprint(const std::string &identity) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char c : identity) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hex(hash);
}

ordered_json describe_cpu() {
  std::map<std::string, std::string> cpu = processor();
  std::ostringstream identity;
  for (const char *field : {"vendor_id", "cpu family", "model", "stepping", "model name"})
    identity << cpu[field] << '/';
  for (const int cache : {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE})
    identity << sysconf(cache) << '/';
  // Some targets are enough to tell devices apart: those added later leave the fingerprints as they are.
  for (const char *target : {"amx", "avx512", "avx2", "sse41"})
    identity << cpu_target(find_cpu_target(target)).available();
  const std::string name = cpu["model name"];
  return {{"fingerprint", fingerprint(identity.str())},
          {"cpu", name.empty() ? "unknown" : name},
          {"cores", available_cores()}};
}

ordered_json describe_gpu() {
  const cuda::Scope scope{CudaStream()};
  const cuda::ContextState &gpu = scope.context();
  std::ostringstream identity;
  identity << gpu.name() << '/' << gpu.capability() << '/' << gpu.multiprocessors();
  return {
      {"fingerprint", fingerprint(identity.str())}, {"gpu", gpu.name()}, {"cores", gpu.multiprocessors()}};
}

}  // namespace

ordered_json describe_device(const std::string &target) {
  if (!cli::runs_on_gpu(target)) return describe_cpu();
  constexpr double kMostSeconds = 60;
  static const ordered_json gpu = supervised(describe_gpu, kMostSeconds);
  if (!gpu.contains("fingerprint")) fail(gpu.value("detail", "the GPU does not answer"));
  return gpu;
}

}  // namespace posattn::tune
