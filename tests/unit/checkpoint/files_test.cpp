#include "lapidary/checkpoint/files.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "lapidary/core/error.h"
#include "tests/unit/checkpoint/temporary_directory.h"

namespace lapidary {
namespace {

using ::testing::HasSubstr;

TEST(Files, FullDeviceIsAnError) {
  const Descriptor full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  ASSERT_GE(full.get(), 0);
  try {
    write_all(full, "/dev/full", "abc", 3);
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("/dev/full: can't be written: No space left on device"));
  }
}

TEST(Files, ReadsRegularFilesUpToALimit) {
  const testing::TemporaryDirectory dir;
  testing::write_bytes(dir / "x", "12345");
  EXPECT_EQ(read_text_file(dir / "x", 5), "12345");
  EXPECT_THROW(read_text_file(dir / "x", 4), Error);
  EXPECT_THROW(read_text_file(dir / "none", 4), Error);
  EXPECT_THROW(read_text_file("/dev/zero", 4), Error);
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  EXPECT_THROW(read_text_file(dir / "pipe", 4), Error);  // and doesn't wait for a writer
}

}  // namespace
}  // namespace lapidary
