// Memory that kernels get through halide_malloc: aligned, theirs alone, and kept by the thread between calls.
#include "runtime/kernel_memory.h"

#include <HalideRuntime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace posattn {
namespace {

TEST(KernelMemory, OutlivesItsInstallation) {
  void *before = halide_malloc(nullptr, 1000);
  install_kernel_memory();
  install_kernel_memory();
  std::memset(before, 1, 1000);
  halide_free(nullptr, before);
  halide_free(nullptr, nullptr);
}

TEST(KernelMemory, IsKept) {
  install_kernel_memory();
  void *first = halide_malloc(nullptr, 300000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 128, 0u);
  halide_free(nullptr, first);
  void *again = halide_malloc(nullptr, 290000);
  EXPECT_EQ(again, first);
  halide_free(nullptr, again);
}

// Threads that allocate and free in any order, some of it what others allocated.
TEST(KernelMemory, BlocksDoNotOverlap) {
  install_kernel_memory();
  struct Piece {
    uint8_t *data;
    size_t size;
    uint8_t tag;
  };
  const auto check = [](const Piece &piece) {
    for (size_t i = 0; i < piece.size; i += 61) {
      if (piece.data[i] != piece.tag) return false;
    }
    return true;
  };
  std::vector<std::vector<Piece>> left(4);
  std::vector<int> wrong(4, 0);
  const auto work = [&](int worker) {
    std::mt19937 random{std::mt19937::result_type(worker)};
    std::vector<Piece> pieces;
    for (int step = 0; step < 3000; step++) {
      if (pieces.size() < 8 && random() % 2) {
        const size_t size = 1 + random() % (random() % 20 ? 200000 : 6000000);
        Piece piece{static_cast<uint8_t *>(halide_malloc(nullptr, size)), size, uint8_t(random())};
        for (size_t i = 0; i < size; i += 61) piece.data[i] = piece.tag;
        pieces.push_back(piece);
      } else if (!pieces.empty()) {
        const size_t at = random() % pieces.size();
        wrong[size_t(worker)] += !check(pieces[at]);
        halide_free(nullptr, pieces[at].data);
        pieces.erase(pieces.begin() + std::ptrdiff_t(at));
      }
    }
    left[size_t(worker)] = pieces;
  };
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int worker = 0; worker < 4; worker++) threads.emplace_back(work, worker);
  for (std::thread &thread : threads) thread.join();
  for (int worker = 0; worker < 4; worker++) {
    EXPECT_EQ(wrong[size_t(worker)], 0);
    for (const Piece &piece : left[size_t(worker)]) {
      EXPECT_TRUE(check(piece));
      halide_free(nullptr, piece.data);
    }
  }
}

}  // namespace
}  // namespace posattn
