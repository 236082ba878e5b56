#include "lapidary/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <bit>
#include <cmath>
#include <complex>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "lapidary/core/error.h"
#include "tests/unit/checkpoint/temporary_directory.h"

namespace lapidary {
namespace {

using lapidary::testing::read_bytes;
using lapidary::testing::TemporaryDirectory;
using lapidary::testing::write_bytes;
using ::testing::HasSubstr;

template <class T>
TensorSource source(const std::string& name, const std::vector<T>& values, Dtype target) {
  return {.name = name,
          .shape = {static_cast<int64_t>(values.size())},
          .dtype = dtype_of<T>(),
          .target = target,
          .data = values.data()};
}

template <class T>
std::vector<T> read(const SafetensorsReader& file, const std::string& name) {
  const TensorEntry* entry = file.find(name);
  if (entry == nullptr) throw Error(name, "not found");
  std::vector<T> out(static_cast<size_t>(entry->shape.numel()));
  convert(*entry, Tensor(out.data(), dtype_of<T>(), entry->shape));
  return out;
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(Safetensors, RoundTripsEveryType) {
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  const std::vector<double> f64 = {0.0, -1.5, 1e300, 0x1.123456789abcdp-3};
  const std::vector<float> f32 = {0.0F, -2.5F, 1e-40F, 3.4e38F};
  const std::vector<bf16> b16 = {bf16(1.0F), bf16(-3.5F), bf16(1e-30F)};
  const std::vector<f16> h16 = {f16(1.0F), f16(-0.1F), f16(6e-8F)};
  const std::vector<int64_t> i64 = {0, -1, int64_t{1} << 40};
  const std::vector<int32_t> i32 = {7, -8};
  const std::vector<uint8_t> u8 = {0, 255, 3};
  write_safetensors(path, {source("u8", u8, Dtype::u8), source("b16", b16, Dtype::bf16),
                           source("i32", i32, Dtype::i32), source("h16", h16, Dtype::f16),
                           source("f32", f32, Dtype::f32), source("i64", i64, Dtype::i64),
                           source("f64", f64, Dtype::f64)});
  const SafetensorsReader file(path);
  EXPECT_EQ(file.entries().size(), 7U);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.find("none"), nullptr);
  EXPECT_EQ(read<double>(file, "f64"), f64);
  EXPECT_EQ(read<float>(file, "f32"), f32);
  EXPECT_EQ(read<int64_t>(file, "i64"), i64);
  EXPECT_EQ(read<int32_t>(file, "i32"), i32);
  EXPECT_EQ(read<uint8_t>(file, "u8"), u8);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(read<bf16>(file, "b16")[i].bits, b16[i].bits);
    EXPECT_EQ(read<f16>(file, "h16")[i].bits, h16[i].bits);
    EXPECT_EQ(read<float>(file, "h16")[i], static_cast<float>(h16[i]));
    EXPECT_EQ(read<std::complex<double>>(file, "b16")[i],
              std::complex<double>(static_cast<float>(b16[i])));
  }
  EXPECT_EQ(read<int64_t>(file, "i32"), (std::vector<int64_t>{7, -8}));
  for (const TensorEntry& entry : file.entries())
    EXPECT_EQ(
        reinterpret_cast<uintptr_t>(entry.data) % static_cast<uintptr_t>(size_of(entry.dtype)), 0U)
        << entry.name;
  EXPECT_EQ(dir.count(), 1U);
}

TEST(Safetensors, ReadsNarrowIntegersUnaligned) {
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  std::string header = R"({"flag":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]},)"
                       R"("i8":{"dtype":"I8","shape":[2],"data_offsets":[1,3]},)"
                       R"("i16":{"dtype":"I16","shape":[2],"data_offsets":[3,7]},)"
                       R"("f32":{"dtype":"F32","shape":[1],"data_offsets":[7,11]}})";
  std::string bytes(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  bytes += header + std::string("\x01\xff\x02\xfe\xff\x2c\x01\x00\x00\x80\x3f", 11);
  write_bytes(path, bytes);
  const SafetensorsReader file(path);
  EXPECT_EQ(read<uint8_t>(file, "flag"), (std::vector<uint8_t>{1}));
  EXPECT_EQ(read<int32_t>(file, "i8"), (std::vector<int32_t>{-1, 2}));
  EXPECT_EQ(read<int64_t>(file, "i16"), (std::vector<int64_t>{-2, 300}));
  EXPECT_EQ(read<float>(file, "f32"), (std::vector<float>{1.0F}));
  EXPECT_EQ(core_dtype_of(file.find("i16")->dtype), std::nullopt);
  EXPECT_EQ(core_dtype_of(file.find("flag")->dtype), Dtype::u8);
}

TEST(Safetensors, RoundsOnceToNearestEven) {
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  // Just above, exactly on and just below the middle between two neighbours of each type. Rounding
  // to float first would put the outer ones on the middle.
  const double tiny = 0x1p-45;
  const std::vector<double> b = {1 + 0x1p-8 + tiny, 1 + 0x1p-8,           1 + 0x1p-8 - tiny,
                                 1 + 0x1.8p-7,      -(1 + 0x1p-8 + tiny), 1e300};
  const std::vector<double> h = {1 + 0x1p-11 + tiny, 1 + 0x1p-11, 1 + 0x1p-11 - tiny, 0x1p-25,
                                 0x1.0000000001p-25, 65520.0};
  write_safetensors(
      path, {source("b", b, Dtype::bf16), source("h", h, Dtype::f16), source("f", b, Dtype::f32)});
  const SafetensorsReader file(path);
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(read<float>(file, "b"),
            (std::vector<float>{1 + 0x1p-7F, 1.0F, 1.0F, 1 + 0x1p-6F, -(1 + 0x1p-7F), inf}));
  EXPECT_EQ(read<float>(file, "h"),
            (std::vector<float>{1 + 0x1p-10F, 1.0F, 1.0F, 0.0F, 0x1p-24F, inf}));
  EXPECT_EQ(read<float>(file, "f")[0], static_cast<float>(b[0]));
}

TEST(Safetensors, ConvertsSpecialValues) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> values = {nan, inf, -inf, -0.0, 5e-324};
  for (const Dtype to : {Dtype::bf16, Dtype::f16}) {
    std::vector<uint16_t> out(5);
    std::vector<float> back(5);
    convert_elements(values.data(), FileDtype::f64, out.data(), to, 5, "t");
    convert_elements(out.data(), file_dtype_of(to), back.data(), Dtype::f32, 5, "t");
    EXPECT_TRUE(std::isnan(back[0]));
    EXPECT_EQ(back[1], static_cast<float>(inf));
    EXPECT_EQ(back[2], static_cast<float>(-inf));
    EXPECT_TRUE(back[3] == 0.0F && std::signbit(back[3]));
    EXPECT_EQ(back[4], 0.0F);
  }
}

TEST(Safetensors, RefusesOtherConversions) {
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  write_safetensors(path, {source("i", std::vector<int64_t>{int64_t{1} << 40}, Dtype::i64),
                           source("f", std::vector<float>{1, 2}, Dtype::f32)});
  const SafetensorsReader file(path);
  EXPECT_THAT(error_of([&] { read<int32_t>(file, "i"); }),
              HasSubstr("1099511627776 doesn't fit i32"));
  EXPECT_THAT(error_of([&] { read<float>(file, "i"); }), HasSubstr("I64 data can't be converted"));
  EXPECT_THAT(error_of([&] { read<int64_t>(file, "f"); }), HasSubstr("x.safetensors: f: F32 data"));
  std::vector<float> out(4);
  EXPECT_THAT(error_of([&] { convert(*file.find("f"), Tensor(out.data(), Dtype::f32, {4})); }),
              HasSubstr("has shape [2], expected [4]"));
  EXPECT_THAT(
      error_of([&] { convert_range(*file.find("f"), 1, Tensor(out.data(), Dtype::f32, {2})); }),
      HasSubstr("outside"));
  EXPECT_THROW(convert_range(*file.find("f"), -1, Tensor(out.data(), Dtype::f32, {1})), Error);
  convert_range(*file.find("f"), 1, Tensor(out.data(), Dtype::f32, {1}));
  EXPECT_EQ(out[0], 2.0F);
}

TEST(Safetensors, KeepsScalars) {
  const TemporaryDirectory dir;
  const float value = 2.5F;
  write_safetensors(dir / "x", {{.name = "s", .shape = {1}, .scalar = true, .data = &value},
                                {.name = "v", .shape = {1}, .data = &value}});
  EXPECT_THAT(read_bytes(dir / "x"), HasSubstr(R"("shape":[])"));
  const SafetensorsReader file(dir / "x");
  EXPECT_TRUE(file.find("s")->scalar);
  EXPECT_FALSE(file.find("v")->scalar);
  EXPECT_EQ(read<float>(file, "s"), (std::vector<float>{2.5F}));
  EXPECT_THROW(write_safetensors(dir / "y",
                                 {{.name = "s", .shape = {0, 2}, .scalar = true, .data = &value}}),
               Error);
}

TEST(Safetensors, StreamsFromACallback) {
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  const int64_t n = 2 * kFillElements + 5;
  int64_t next = 0;
  const auto fill = [&](int64_t first, int64_t count, void* out) {
    EXPECT_EQ(first, next);
    EXPECT_LE(count, kFillElements);
    next = first + count;
    for (int64_t i = 0; i < count; ++i)
      static_cast<float*>(out)[i] = static_cast<float>((first + i) % 251);
  };
  write_safetensors(path, {{.name = "t", .shape = {n}, .target = Dtype::bf16, .fill = fill}});
  EXPECT_EQ(next, n);
  const SafetensorsReader file(path);
  const std::vector<float> back = read<float>(file, "t");
  for (int64_t i = 0; i < n; ++i)
    ASSERT_EQ(back[static_cast<size_t>(i)], static_cast<float>(i % 251));
}

TEST(Safetensors, RefusesWhatCannotBeStored) {
  const TemporaryDirectory dir;
  const std::vector<float> v = {1};
  TensorSource bad = source("c", v, Dtype::c128);
  const std::string message = error_of([&] {
    write_safetensors(dir / "x",
                      {bad, source("a", v, Dtype::f32), source("a", v, Dtype::f32),
                       source("__metadata__", v, Dtype::f32), TensorSource{.name = "e"}});
  });
  for (const char* part : {"c128", "given twice", "reserved", "no shape"})
    EXPECT_THAT(message, HasSubstr(part));
  EXPECT_THAT(error_of([&] { write_safetensors(dir / "x", {source("\xff", v, Dtype::f32)}); }),
              HasSubstr("UTF-8"));
  EXPECT_EQ(dir.count(), 0U);
}

TEST(Safetensors, FailureLeavesTheOldFile) {
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  write_safetensors(path, {source("a", std::vector<float>{1}, Dtype::f32)});
  const std::string before = read_bytes(path);
  const auto fill = [](int64_t, int64_t, void*) { throw Error("fill", "lost a rank"); };
  EXPECT_THAT(
      error_of([&] { write_safetensors(path, {{.name = "a", .shape = {9}, .fill = fill}}); }),
      HasSubstr("lost a rank"));
  EXPECT_EQ(read_bytes(path), before);
  EXPECT_EQ(dir.count(), 1U);
  EXPECT_THAT(error_of([&] { write_safetensors(dir / "no/x", {}); }),
              HasSubstr("can't be written"));
}

TEST(Safetensors, FullDiskLeavesTheOldFile) {
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  write_safetensors(path, {source("a", std::vector<float>{1}, Dtype::f32)});
  const std::string before = read_bytes(path);

  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 1 << 16, .rlim_max = old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = error_of(
      [&] { write_safetensors(path, {source("a", std::vector<float>(1 << 18), Dtype::f32)}); });
  ::setrlimit(RLIMIT_FSIZE, &old);
  ::signal(SIGXFSZ, handler);

  EXPECT_THAT(message, HasSubstr("x.safetensors: can't be written: File too large"));
  EXPECT_EQ(read_bytes(path), before);
  EXPECT_EQ(dir.count(), 1U);
}

TEST(Safetensors, RefusesWhatIsNoFile) {
  const TemporaryDirectory dir;
  EXPECT_THAT(error_of([&] { SafetensorsReader file(dir / "none"); }), HasSubstr("No such file"));
  EXPECT_THAT(error_of([&] { SafetensorsReader file("/dev/zero"); }), HasSubstr("not a regular"));
  EXPECT_THAT(error_of([&] { SafetensorsReader file(dir / ""); }), HasSubstr("not a regular"));
  write_bytes(dir / "empty", "");
  EXPECT_THAT(error_of([&] { SafetensorsReader file(dir / "empty"); }), HasSubstr("too short"));
  std::vector<float> v(100, 1.0F);
  write_safetensors(dir / "cut", {source("a", v, Dtype::f32)});
  const std::string whole = read_bytes(dir / "cut");
  for (const size_t size : {size_t{9}, size_t{60}, whole.size() - 1}) {
    write_bytes(dir / "cut", whole.substr(0, size));
    EXPECT_THROW(SafetensorsReader file(dir / "cut"), Error) << size;
  }
}

}  // namespace
}  // namespace lapidary
