// measure: times candidates that tools/tune has built. It needs neither Bazel nor Python: a bundle holds this
// program, the candidates and a file of jobs, and its records are brought back.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <fstream>
#include <iostream>
#include <set>
#include <vector>

#include "CLI/CLI.hpp"
#include "runtime/cuda/targets.h"
#include "runtime/error.h"
#include "runtime/kernel_registry.h"
#include "tools/posattn/kernel_filter.h"
#include "tools/tune/device.h"
#include "tools/tune/job.h"

namespace {

using nlohmann::ordered_json;
using posattn::fail;
using posattn::tune::describe_device;

std::vector<ordered_json> read_jobs(const std::string &path) {
  std::ifstream file(path);
  if (!file) fail(path, ": cannot be read");
  std::vector<ordered_json> jobs;
  for (std::string line; std::getline(file, line);) {
    if (line.empty()) continue;
    ordered_json job = ordered_json::parse(line, nullptr, false);
    if (!job.is_object()) fail(path, ": line ", jobs.size() + 1, " is no job");
    jobs.push_back(std::move(job));
  }
  return jobs;
}

using RecordKey = std::pair<std::string, std::string>;  // id, and fingerprint of the device

// Lines that were cut are none.
std::set<RecordKey> finished(const std::string &path) {
  std::set<RecordKey> ids;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const ordered_json record = ordered_json::parse(line, nullptr, false);
    if (record.is_object() && record.contains("outcome") && record.contains("device"))
      ids.emplace(record.value("id", ""), record["device"].value("fingerprint", ""));
  }
  return ids;
}

// A line in one piece, after whatever else is being written; on a line of its own even if the last one was
// cut.
void append(const std::string &path, const ordered_json &record) {
  const int file = open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (file < 0) fail(path, ": cannot be written");
  flock(file, LOCK_EX);
  std::string line = record.dump() + "\n";
  char last = '\n';
  const off_t size = lseek(file, 0, SEEK_END);
  if (size > 0 && pread(file, &last, 1, size - 1) == 1 && last != '\n') line.insert(0, "\n");
  const bool written = write(file, line.data(), line.size()) == static_cast<ssize_t>(line.size());
  close(file);
  if (!written) fail(path, ": cannot be written");
}

void measure_all(const std::string &jobs_path, const std::string &records_path) {
  const std::vector<ordered_json> jobs = read_jobs(jobs_path);
  const std::set<RecordKey> done = finished(records_path);
  size_t number = 0;
  for (const ordered_json &job : jobs) {
    ++number;
    const ordered_json device = describe_device(job.at("kernel").at("target"));
    if (done.count({job.at("id"), device["fingerprint"]})) continue;
    const ordered_json record = posattn::tune::measure(job);
    append(records_path, record);
    std::cout << number << '/' << jobs.size() << ' ' << record.at("outcome").get<std::string>();
    if (record.contains("ratio"))
      std::cout << ", " << record.at("ratio").get<double>() << " of the baseline's time";
    if (record.contains("detail")) std::cout << ": " << record.at("detail").get<std::string>();
    std::cout << std::endl;
  }
}

// With the targets that it runs, best first: of the CPU, or of the GPU if that is what runs `target`.
void print_device(const std::string &target) {
  ordered_json device = describe_device(target);
  device["targets"] = ordered_json::array();
  for (const posattn::TargetInfo &known :
       posattn::cli::runs_on_gpu(target) ? posattn::cuda_targets() : posattn::targets())
    if (known.cpu_has_it && known.linked) device["targets"].push_back(known.name);
  std::cout << device.dump() << std::endl;
}

int run(int argc, char **argv) {
  CLI::App app("Times candidate schedules of kernels, each in a process of its own.", "measure");
  app.require_subcommand(1);
  CLI::App *device = app.add_subcommand("device", "Prints this machine's fingerprint");
  std::string target;
  device->add_option("--target", target, "The device that runs this one (the CPU)")->type_name("NAME");
  CLI::App *jobs = app.add_subcommand("jobs", "Measures the jobs that have no record yet");
  std::string jobs_path = "jobs.jsonl", records_path = "records.jsonl";
  jobs->add_option("jobs", jobs_path, "A job a line (jobs.jsonl)")->type_name("JOBS.jsonl");
  jobs->add_option("-o,--records", records_path, "Where a line a job is added (records.jsonl)")
      ->type_name("RECORDS.jsonl");
  CLI11_PARSE(app, argc, argv);
  if (*device) print_device(target);
  if (*jobs) measure_all(jobs_path, records_path);
  return 0;
}

}  // namespace

int main(int argc, char **argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception &error) {
    std::cerr << "measure: " << error.what() << '\n';
    return 2;
  }
}
