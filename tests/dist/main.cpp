#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <optional>

#include "lapidary/core/error.h"
#include "tests/dist/world.h"

// Runs the tests on every rank of mpirun. The first rank reports; of the others only failures show.
namespace lapidary::test {
namespace {

std::optional<World> joined;

class FailuresOnly final : public ::testing::EmptyTestEventListener {
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s:%d: %s\n", static_cast<int>(world().rank()),
                 result.file_name() == nullptr ? "?" : result.file_name(), result.line_number(),
                 result.message());
  }
};

// An exception leaves the other ranks waiting: the job ends.
class EndOnException final : public ::testing::EmptyTestEventListener {
  void OnTestEnd(const ::testing::TestInfo& info) override {
    const auto& result = *info.result();
    for (int i = 0; i < result.total_part_count(); ++i) {
      const auto& part = result.GetTestPartResult(i);
      if (part.fatally_failed() && part.line_number() == -1) end_job(1);  // thrown
    }
  }
};

int run(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  joined.emplace();
  joined->set_timeout(60.0);
  auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
  if (joined->rank() != 0) {
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailuresOnly);
  }
  listeners.Append(new EndOnException);
  const int code = RUN_ALL_TESTS();
  joined.reset();
  return code;
}

}  // namespace

const World& world() { return *joined; }

MeshGroups groups_of(const Mesh& mesh) {
  return MeshGroups(mesh, world().rank(), [](int64_t color, const std::string& name) {
    return world().split(color, name);
  });
}

}  // namespace lapidary::test

int main(int argc, char** argv) {
  try {
    return lapidary::test::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %d: %s\n", static_cast<int>(lapidary::job_rank()), error.what());
    lapidary::end_job(1);
    return 1;
  }
}
