#include "tools/tune/job.h"

#include <chrono>
#include <ctime>
#include <map>

#include "runtime/dispatch.h"
#include "runtime/error.h"
#include "runtime/threads.h"
#include "tools/posattn/bench_case.h"
#include "tools/posattn/kernel_filter.h"
#include "tools/posattn/verify_case.h"
#include "tools/tune/device.h"
#include "tools/tune/interleaved.h"
#include "tools/tune/loaded_kernel.h"
#include "tools/tune/supervised.h"

namespace posattn::tune {
namespace {

using cli::BenchSizes;
using cli::BenchWork;
using nlohmann::ordered_json;

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

KernelKey key_of(const ordered_json &kernel) {
  return {kernel.at("kind"), kernel.at("branches"), kernel.at("type"), kernel.at("target"),
          kernel.at("head_dim")};
}

BenchSizes sizes_of(const ordered_json &call) {
  BenchSizes sizes;
  const std::map<std::string, int64_t *> numbers = {
      {"batch", &sizes.batch}, {"heads", &sizes.heads}, {"queries", &sizes.queries},
      {"keys", &sizes.keys},   {"rows", &sizes.rows},   {"features", &sizes.features}};
  for (const auto &[name, value] : call.items()) {
    if (name == "causal") {
      sizes.causal = value.get<int>() != 0;
    } else if (const auto number = numbers.find(name); number != numbers.end()) {
      *number->second = value.get<int64_t>();
    } else {
      fail("call: there is no size ", name);
    }
  }
  return sizes;
}

// A kernel and a call of its own.
struct Contender {
  const KernelInfo &kernel;
  BenchWork work;

  Contender(const ordered_json &from, const KernelKey &key, const BenchSizes &sizes)
      : kernel(load_kernel(from.at("library"), from.at("symbol"), key)) {
    cli::take_kernel(kernel);
    work = cli::make_work(kernel, sizes);
    if (!work.run) fail("kind ", key.kind, ": not timed by itself");
  }
  std::function<void()> call() const {
    return [this] {
      prefer_kernel(&kernel);
      work.run();
    };
  }
};

ordered_json wrong(const std::string &detail) { return {{"outcome", "wrong"}, {"detail", detail}}; }

ordered_json measure_here(const ordered_json &job) {
  const KernelKey key = key_of(job.at("kernel"));
  set_num_threads(job.at("threads"));
  const BenchSizes sizes = sizes_of(job.at("call"));
  const Contender candidate(job.at("candidate"), key, sizes);

  for (int i = 0; i < job.at("verify_cases").get<int>() && cli::why_not(candidate.kernel).empty(); ++i) {
    const cli::Verdict verdict = cli::verify(candidate.kernel, static_cast<uint64_t>(i) + 1);
    if (!verdict.ok) return wrong(verdict.text);
  }
  ordered_json result = {{"outcome", "ok"}};
  if (candidate.work.check) {
    candidate.call()();
    const oracle::Comparison comparison = candidate.work.check();
    if (!comparison.ok) return wrong("the call that is timed: " + comparison.text);
    result["error"] = {{"max", comparison.error}, {"bound", comparison.bound}};
  }

  const Contender baseline(job.at("baseline"), key, sizes);
  const Timing timing =
      interleave(candidate.call(), baseline.call(),
                 {job.at("seconds"), job.at("threads"), candidate.work.finish, job.value("give_up", 0.0)});
  result["seconds"] = {{"best", timing.candidate_best}, {"median", timing.candidate_median}};
  result["baseline_seconds"] = {{"best", timing.baseline_best}, {"median", timing.baseline_median}};
  result["ratio"] = timing.ratio;
  result["rounds"] = timing.rounds;
  if (timing.gave_up) result["gave_up"] = true;
  return result;
}

}  // namespace

ordered_json begin_record(const ordered_json &job) {
  ordered_json record;
  for (const char *field :
       {"id", "round", "kernel", "shape", "space", "code", "parameters", "call", "threads"})
    record[field] = job.at(field);
  record["time"] = utc_now();
  record["device"] = describe_device(job.at("kernel").at("target"));
  record["versions"] = job.at("versions");
  return record;
}

ordered_json measure(const ordered_json &job) {
  ordered_json record = begin_record(job);
  record.update(supervised([&job] { return measure_here(job); }, job.at("timeout")));
  return record;
}

}  // namespace posattn::tune
