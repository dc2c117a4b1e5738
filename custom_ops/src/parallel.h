// Cuts work into tasks for a thread pool. Knows nothing of onnxruntime.

#pragma once

#include <algorithm>
#include <cstddef>

namespace onnxpq {

// Runs task(argument, i) for i in [0, count), possibly in parallel, and returns when all are done. `task` does not
// throw.
struct ThreadPool {
  void* pool;
  void (*run)(void* pool, void (*task)(void* argument, size_t index), size_t count, void* argument);
};

constexpr size_t kMinTasks = 4, kMaxTasks = 64;

inline size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

// Calls body(begin, end) for ranges that cover [0, total), each worth about `task_cost` where one item costs
// `item_cost`.
template <typename Body>
void for_ranges(const ThreadPool& threads, size_t total, size_t item_cost, size_t task_cost, const Body& body) {
  const size_t items = std::max(ceil_div(task_cost, std::max<size_t>(item_cost, 1)), ceil_div(total, kMaxTasks));
  const size_t tasks = ceil_div(total, items);
  if (tasks < kMinTasks || threads.run == nullptr) {
    body(size_t{0}, total);
    return;
  }
  struct Job {
    const Body* body;
    size_t items, total;
  } job = {&body, items, total};
  threads.run(
      threads.pool,
      [](void* argument, size_t task) {
        const Job& j = *static_cast<const Job*>(argument);
        (*j.body)(task* j.items, std::min((task + 1) * j.items, j.total));
      },
      tasks, &job);
}

}  // namespace onnxpq
