#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "lapidary/core/error.h"
#include "tests/dist/world.h"
#include "tests/support/tensors.h"

// Every operation of a group over MPI against what it should give, computed here from what every
// rank holds: rank r's numbers come from a generator of its own that all ranks can run.
namespace lapidary::test {
namespace {

// Pieces of 48 bytes: most messages travel in several.
constexpr int64_t kPiece = 48;
constexpr int64_t kSizes[] = {0, 1, 7, 12, 13, 100};

OwnedTensor numbers_of(int64_t rank, int64_t n, Dtype dtype = Dtype::f32) {
  Rng rng(7, static_cast<uint64_t>(rank));
  if (dtype == Dtype::i64) return random_int(dtype, {n}, rng, -1000, 1000);
  return random(dtype, {n}, rng);
}

class Collectives : public ::testing::Test {
 protected:
  std::unique_ptr<ProcessGroup> group_ = world().split(0, "world", kPiece);
  const int64_t rank_ = world().rank(), size_ = world().size();

  // In the order of the ranks, in the tensor's own type.
  template <class T>
  std::vector<T> sum_of_all(int64_t n) const {
    std::vector<T> sum(static_cast<size_t>(n));
    for (int64_t r = 0; r < size_; ++r) {
      const OwnedTensor x = numbers_of(r, n, dtype_of<T>());
      for (int64_t i = 0; i < n; ++i) {
        T& to = sum[static_cast<size_t>(i)];
        to = r == 0 ? x->as<T>()[i] : to + x->as<T>()[i];
      }
    }
    return sum;
  }
};

template <class T>
void expect_bits(const Tensor& got, const T* expected) {
  EXPECT_EQ(std::memcmp(got.data(), expected, static_cast<size_t>(got.bytes())), 0);
}

TEST_F(Collectives, AllReduceSumsInTheOrderOfTheRanks) {
  for (const int64_t n : kSizes) {
    const auto check = [&]<class T>(T) {
      const OwnedTensor x = numbers_of(rank_, n, dtype_of<T>());
      group_->all_reduce(x.get());
      const std::vector<T> expected = sum_of_all<T>(n);
      expect_bits(x.get(), expected.data());
    };
    check(float{});
    check(double{});
    check(int64_t{});
  }
}

TEST_F(Collectives, ReduceScatterGivesEachItsPart) {
  for (const int64_t part : kSizes) {
    const OwnedTensor x = numbers_of(rank_, part * size_);
    const OwnedTensor out = poisoned(Dtype::f32, {part});
    group_->reduce_scatter(x.get(), out.get());
    const std::vector<float> expected = sum_of_all<float>(part * size_);
    expect_bits(out.get(), expected.data() + rank_ * part);
  }
}

TEST_F(Collectives, AllGatherKeepsTheOrder) {
  for (const int64_t n : kSizes) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::i64, Dtype::u8}) {
      const auto of = [&](int64_t r) { return cast(numbers_of(r, n).get(), dtype); };
      const OwnedTensor mine = of(rank_);
      const OwnedTensor out = poisoned(dtype, {n * size_});
      group_->all_gather(mine.get(), out.get());
      for (int64_t r = 0; r < size_; ++r) {
        expect_bits(out->slice(0, r * n, n), static_cast<const char*>(of(r)->data()));
      }
      // In place.
      const Tensor part = out->slice(0, rank_ * n, n);
      group_->all_gather(part, out.get());
      expect_bits(part, static_cast<const char*>(mine->data()));
    }
  }
}

// Rank r sends s rows of three to rank (r + s) mod n.
TEST_F(Collectives, AllToAllMovesRowsOfEveryNumber) {
  std::vector<int64_t> send(static_cast<size_t>(size_)), receive(send);
  for (int64_t s = 0; s < size_; ++s) {
    send[static_cast<size_t>((rank_ + s) % size_)] = s;
    receive[static_cast<size_t>((rank_ - s + size_) % size_)] = s;
  }
  const int64_t rows = size_ * (size_ - 1) / 2;
  const OwnedTensor in = poisoned(Dtype::i64, {rows, 3}), out = poisoned(Dtype::i64, {rows, 3});
  int64_t at = 0;
  for (int64_t to = 0; to < size_; ++to) {
    for (int64_t i = 0; i < send[static_cast<size_t>(to)] * 3; ++i) {
      in->as<int64_t>()[at++] = rank_ * 10000 + to * 100 + i;
    }
  }
  group_->all_to_all_v(in.get(), send, out.get(), receive);
  at = 0;
  for (int64_t from = 0; from < size_; ++from) {
    for (int64_t i = 0; i < receive[static_cast<size_t>(from)] * 3; ++i) {
      EXPECT_EQ(out->as<int64_t>()[at++], from * 10000 + rank_ * 100 + i);
    }
  }
}

TEST_F(Collectives, BroadcastAndMessages) {
  for (const int64_t n : kSizes) {
    for (int64_t root = 0; root < size_; ++root) {
      OwnedTensor x = numbers_of(rank_, n);
      group_->broadcast(x.get(), root);
      expect_bits(x.get(), numbers_of(root, n)->as<float>());
    }
    // Around the ring, in order.
    const int64_t next = (rank_ + 1) % size_, before = (rank_ + size_ - 1) % size_;
    const OwnedTensor mine = numbers_of(rank_, n), got = poisoned(Dtype::f32, {n});
    if (rank_ == 0) {
      group_->send(mine.get(), next);
      group_->recv(got.get(), before);
    } else {
      group_->recv(got.get(), before);
      group_->send(mine.get(), next);
    }
    expect_bits(got.get(), numbers_of(before, n)->as<float>());
  }
  group_->barrier();
}

TEST_F(Collectives, SeveralMayBeUnderWay) {
  const OwnedTensor a = numbers_of(rank_, 40), b = numbers_of(rank_ + 100, 9);
  const OwnedTensor all_a = poisoned(Dtype::f32, {40 * size_});
  const OwnedTensor all_b = poisoned(Dtype::f32, {9 * size_});
  const auto other = world().split(0, "other");
  Pending first = group_->start_all_gather(a.get(), all_a.get());
  Pending second = group_->start_all_gather(b.get(), all_b.get());
  double sum = 1.0;
  other->all_reduce(std::span<double>(&sum, 1));
  EXPECT_EQ(sum, static_cast<double>(size_));
  second.wait();
  first.wait();
  for (int64_t r = 0; r < size_; ++r) {
    expect_bits(all_a->slice(0, 40 * r, 40), numbers_of(r, 40)->as<float>());
    expect_bits(all_b->slice(0, 9 * r, 9), numbers_of(r + 100, 9)->as<float>());
  }
}

// Rank 1 expects a row more, or less, of rank 0 than it sends: too long and too short are an Error.
TEST_F(Collectives, RowsThatWereNotExpectedAreAnError) {
  for (const int64_t expected : {1, 3}) {
    const auto group = world().split(0, "unequal");
    std::vector<int64_t> send(static_cast<size_t>(size_)), receive(send);
    if (rank_ == 0) send[1] = 2;
    if (rank_ == 1) receive[0] = expected;
    const OwnedTensor in = zeros(Dtype::f32, {send[1], 2});
    const OwnedTensor out = zeros(Dtype::f32, {receive[0], 2});
    const auto exchange = [&] { group->all_to_all_v(in.get(), send, out.get(), receive); };
    if (rank_ == 1) {
      EXPECT_THROW(exchange(), Error) << expected;
    } else {
      exchange();
    }
  }
}

TEST_F(Collectives, PiecesHaveASize) {
  EXPECT_THROW(world().split(0, "pieces", 0), Error);
  EXPECT_THROW(world().split(0, "pieces", int64_t{1} << 31), Error);
}

TEST_F(Collectives, TrafficIsCounted) {
  const auto expect = [&](Collective operation, int64_t bytes) {
    EXPECT_EQ(group_->traffic(operation).calls, 1);
    EXPECT_EQ(group_->traffic(operation).bytes, bytes);
  };
  group_->reset_traffic();
  const OwnedTensor part = zeros(Dtype::f32, {24}), whole = zeros(Dtype::f32, {24 * size_});
  group_->all_gather(part.get(), whole.get());
  expect(Collective::all_gather, (size_ - 1) * 96);
  group_->reduce_scatter(whole.get(), part.get());
  expect(Collective::reduce_scatter, (size_ - 1) * 96);
  group_->all_reduce(part.get());
  expect(Collective::all_reduce, 2 * (size_ - 1) * 96 / size_);
  group_->broadcast(part.get(), 1);
  expect(Collective::broadcast, rank_ == 1 ? (size_ - 1) * 96 : 0);
  const std::vector<int64_t> rows(static_cast<size_t>(size_), 2);
  const OwnedTensor table = zeros(Dtype::f32, {2 * size_, 5});
  const OwnedTensor arrived = zeros(Dtype::f32, {2 * size_, 5});
  group_->all_to_all_v(table.get(), rows, arrived.get(), rows);
  expect(Collective::all_to_all_v, (size_ - 1) * 2 * 5 * 4);
}

// <A x, y> = <x, A' y>, summed over the ranks.
class Adjoints : public Collectives {
 protected:
  double dot(const Tensor& a, const Tensor& b) {
    double sum = 0.0;
    for (int64_t i = 0; i < a.numel(); ++i) sum += at(a, i) * at(b, i);
    group_->all_reduce(std::span<double>(&sum, 1));
    return sum;
  }
  OwnedTensor random_here(const Shape& shape, uint64_t stream) const {
    Rng rng(11 + stream, static_cast<uint64_t>(rank_));
    return random(Dtype::f64, shape, rng);
  }
};

TEST_F(Adjoints, AllGatherAndReduceScatter) {
  const OwnedTensor x = random_here({9}, 0), y = random_here({9 * size_}, 1);
  const OwnedTensor ax = zeros(Dtype::f64, {9 * size_}), aty = zeros(Dtype::f64, {9});
  group_->all_gather(x.get(), ax.get());
  group_->reduce_scatter(y.get(), aty.get());
  EXPECT_NEAR(dot(ax.get(), y.get()), dot(x.get(), aty.get()), 1e-12);
}

TEST_F(Adjoints, AllToAllAndItsReverse) {
  std::vector<int64_t> send(static_cast<size_t>(size_)), receive(send);
  for (int64_t r = 0; r < size_; ++r) {
    send[static_cast<size_t>(r)] = (rank_ * 3 + r) % 4;
    receive[static_cast<size_t>(r)] = (r * 3 + rank_) % 4;
  }
  const auto total = [](const std::vector<int64_t>& rows) {
    return std::accumulate(rows.begin(), rows.end(), int64_t{0});
  };
  const OwnedTensor x = random_here({total(send), 2}, 2), y = random_here({total(receive), 2}, 3);
  const OwnedTensor ax = zeros(Dtype::f64, y->shape()), aty = zeros(Dtype::f64, x->shape());
  group_->all_to_all_v(x.get(), send, ax.get(), receive);
  group_->all_to_all_v(y.get(), receive, aty.get(), send);
  EXPECT_NEAR(dot(ax.get(), y.get()), dot(x.get(), aty.get()), 1e-12);
}

// Replicated values: a broadcast's adjoint is the sum at the root.
TEST_F(Adjoints, BroadcastAndSumAtTheRoot) {
  const OwnedTensor x = random_here({7}, 4), y = random_here({7}, 5);
  const OwnedTensor ax = cast(x.get(), Dtype::f64), aty = cast(y.get(), Dtype::f64);
  group_->broadcast(ax.get(), 0);
  group_->all_reduce(aty.get());
  const OwnedTensor at_root = rank_ == 0 ? cast(x.get(), Dtype::f64) : zeros(Dtype::f64, {7});
  EXPECT_NEAR(dot(ax.get(), y.get()), dot(at_root.get(), aty.get()), 1e-12);
}

// Identity forward (every replica computes with the same weights), all_reduce backward.
TEST_F(Adjoints, ReplicasAndAllReduce) {
  OwnedTensor x = random_here({7}, 6);
  group_->broadcast(x.get(), 0);  // the same on every rank
  const OwnedTensor y = random_here({7}, 7);
  const OwnedTensor aty = cast(y.get(), Dtype::f64);
  group_->all_reduce(aty.get());
  // One copy of x and of its gradient, whichever rank holds it.
  EXPECT_NEAR(dot(x.get(), y.get()), dot(x.get(), aty.get()) / static_cast<double>(size_), 1e-12);
}

TEST_F(Collectives, GroupsOfAMeshAreTheRanksThatShareAnAxis) {
  if (size_ != 4 && size_ != 8) GTEST_SKIP();
  const Mesh mesh({.world_size = size_, .dp_replicate_size = 2, .ep_size = size_ / 2});
  const MeshGroups groups = groups_of(mesh);
  const auto members = [&](ProcessGroup& group) {
    std::vector<int64_t> ranks(static_cast<size_t>(group.size()));
    int64_t mine = rank_;
    group.all_gather(ConstTensor(&mine, Dtype::i64, {1}),
                     Tensor(ranks.data(), Dtype::i64, {group.size()}));
    return ranks;
  };
  const auto expected = [&](auto&& same) {
    std::vector<int64_t> ranks;
    for (int64_t r = 0; r < size_; ++r) {
      if (same(r)) ranks.push_back(r);
    }
    return ranks;
  };
  const Mesh::Dense me = mesh.dense(rank_);
  const Mesh::Sparse my = mesh.sparse(rank_);
  EXPECT_EQ(members(groups.data()), expected([](int64_t) { return true; }));
  EXPECT_EQ(members(groups.dp_shard()),
            expected([&](int64_t r) { return mesh.dense(r).dp_replicate == me.dp_replicate; }));
  EXPECT_EQ(members(groups.dp_replicate()),
            expected([&](int64_t r) { return mesh.dense(r).dp_shard == me.dp_shard; }));
  EXPECT_EQ(members(groups.ep()),
            expected([&](int64_t r) { return mesh.sparse(r).ep_shard == my.ep_shard; }));
  EXPECT_EQ(members(groups.ep_shard()),
            expected([&](int64_t r) { return mesh.sparse(r).ep == my.ep; }));
}

}  // namespace
}  // namespace lapidary::test
