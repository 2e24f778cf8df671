#include "tools/tune/supervised.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <string>

#include "runtime/error.h"

namespace posattn::tune {
namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

ordered_json failure(const char *outcome, const std::string &detail) {
  return {{"outcome", outcome}, {"detail", detail}};
}

[[noreturn]] void run_child(const std::function<ordered_json()> &work, int out) {
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // nobody would read the result
  std::string text;
  try {
    text = work().dump();
  } catch (const std::exception &error) {
    text = failure("error", error.what()).dump();
  }
  size_t written = 0;
  while (written < text.size()) {
    const ssize_t count = write(out, text.data() + written, text.size() - written);
    if (count <= 0) _exit(1);
    written += static_cast<size_t>(count);
  }
  _exit(0);  // without destructors: a broken candidate may have damaged what they would free
}

// All that comes until the other end is closed; false if the time is over before.
bool read_all(int in, Clock::time_point end, std::string &text) {
  char buffer[4096];
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    if (left <= 0) return false;
    pollfd waiting{in, POLLIN, 0};
    if (poll(&waiting, 1, static_cast<int>(left)) <= 0) continue;
    const ssize_t count = read(in, buffer, sizeof(buffer));
    if (count == 0) return true;
    if (count > 0) text.append(buffer, static_cast<size_t>(count));
  }
}

}  // namespace

ordered_json supervised(const std::function<ordered_json()> &work, double seconds) {
  int ends[2];
  if (pipe(ends) != 0) fail("measure: no pipe");
  const pid_t child = fork();
  if (child < 0) fail("measure: no process");
  if (child == 0) {
    close(ends[0]);
    run_child(work, ends[1]);
  }
  close(ends[1]);
  const Clock::time_point end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  std::string text;
  const bool in_time = read_all(ends[0], end, text);
  close(ends[0]);
  if (!in_time) kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  if (!in_time) return failure("timeout", "more than " + std::to_string(static_cast<int>(seconds)) + " s");
  if (WIFSIGNALED(status)) return failure("crash", strsignal(WTERMSIG(status)));
  if (WEXITSTATUS(status) != 0) return failure("crash", "exit status " + std::to_string(WEXITSTATUS(status)));
  const ordered_json result = ordered_json::parse(text, nullptr, false);
  return result.is_object() ? result : failure("crash", "it ended without a result");
}

}  // namespace posattn::tune
