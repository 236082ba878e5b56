#pragma once

#include <functional>
#include <string>

#include "lapidary/comm/process_group.h"

// What ranks need to work on files together: a rank that fails must not leave the others waiting.
namespace lapidary {

// Calls `work`, which must not use the group, then waits for all ranks. Where it threw on any rank,
// every rank throws: a failing rank its own exception, the others Error(where): "rank N: what it
// says", N being the first that failed. Collective.
void together(ProcessGroup& group, const std::string& where, const std::function<void()>& work);

// `work` on the first rank alone; otherwise the same.
void on_first_rank(ProcessGroup& group, const std::string& where,
                   const std::function<void()>& work);

// The text of rank `root`, on every rank. Collective.
std::string broadcast_text(ProcessGroup& group, const std::string& text, int64_t root = 0);

}  // namespace lapidary
