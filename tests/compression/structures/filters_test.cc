#include "compression/structures/filters.h"

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::ElementsAre;

Layer FilterLayerOf(std::vector<int64_t> shape, int axis = 0) {
  Layer layer = MakeLayer("layer", std::move(shape));
  layer.channel_axis = axis;
  layer.elements = 1;
  for (const int64_t size : layer.shape) layer.elements *= size;
  return layer;
}

Layer Grouped(std::vector<int64_t> shape, std::vector<uint32_t> units, int64_t count,
              int64_t runs = 1, int index = 0) {
  Layer layer = FilterLayerOf(std::move(shape));
  layer.group =
      std::make_shared<const InFilterGroup>(InFilterGroup{index, count, runs, std::move(units)});
  return layer;
}

std::vector<FilterSet> SetsOf(const std::vector<Layer>& layers, int64_t round_to = 1,
                              const std::vector<Mask>& masks = {}) {
  std::vector<FilterLayer> given;
  for (size_t i = 0; i < layers.size(); ++i) {
    given.push_back({&layers[i], i < masks.size() ? &masks[i] : nullptr});
  }
  return FilterSet::Of(given, round_to);
}

TEST(FilterMaskTest, RemovesSlicesAlongTheChannelAxis) {
  EXPECT_EQ(Bits(WithoutFilters(FilterLayerOf({3, 4}), nullptr, {true, false, true})),
            "000011110000");
  EXPECT_EQ(Bits(WithoutFilters(FilterLayerOf({4, 3}, 1), nullptr, {true, false, true})),
            "010010010010");
  EXPECT_EQ(Bits(WithoutFilters(FilterLayerOf({2, 3, 2}, 1), nullptr, {false, true, false})),
            "110011110011");
  const Mask before = MaskOf("101011111111");
  EXPECT_EQ(Bits(WithoutFilters(FilterLayerOf({3, 4}), &before, {false, false, true})),
            "101011110000")
      << "what is removed stays removed";
}

TEST(FilterMaskTest, AFilterIsRemovedWhenNoWeightOfItIsKept) {
  const Layer rows = FilterLayerOf({3, 20});
  for (const int64_t lonely : {20, 27, 28, 39}) {
    std::string bits(60, '0');
    bits[static_cast<size_t>(lonely)] = '1';
    const Mask mask = MaskOf(bits);
    EXPECT_THAT(RemovedFilters(rows, &mask), ElementsAre(true, false, true)) << lonely;
  }
  EXPECT_THAT(RemovedFilters(rows, nullptr), ElementsAre(false, false, false));
  const Mask columns = MaskOf("010010");
  EXPECT_THAT(RemovedFilters(FilterLayerOf({2, 3}, 1), &columns), ElementsAre(true, false, true));
}

TEST(FilterSetTest, OneFilterStaysAndTheNumberKeptIsRounded) {
  const FilterSet plain = SetsOf({FilterLayerOf({10, 2})})[0];
  EXPECT_EQ(plain.CountFor(0), 0);
  EXPECT_EQ(plain.CountFor(0.39), 3);
  EXPECT_EQ(plain.CountFor(0.5), 5);
  EXPECT_EQ(plain.CountFor(1), 9);
  const FilterSet rounded = SetsOf({FilterLayerOf({10, 2})}, 4)[0];
  EXPECT_THAT(rounded.counts(), ElementsAre(0, 2, 6));
  EXPECT_EQ(rounded.CountFor(0.1), 0);
  EXPECT_EQ(rounded.CountFor(0.5), 2);
  EXPECT_EQ(rounded.CountFor(1), 6);
  EXPECT_THAT(SetsOf({FilterLayerOf({10, 2})}, 16)[0].counts(), ElementsAre(0));
  EXPECT_THAT(SetsOf({FilterLayerOf({1, 2})})[0].counts(), ElementsAre(0));
}

TEST(FilterSetTest, RunsLoseTheSameNumber) {
  std::vector<uint32_t> units = {0, 1, 2, 3, 4, 5, 6, 7};
  const FilterSet set = SetsOf({Grouped({8, 3}, units, 8, 2)})[0];
  EXPECT_EQ(set.CountFor(0.5), 2);
  EXPECT_EQ(set.CountFor(1), 3);
  const auto order = set.Order({5, 1, 4, 2, 0, 0, 9, 8});
  EXPECT_THAT(order, ElementsAre(ElementsAre(1, 3, 2, 0), ElementsAre(4, 5, 7, 6)));
  EXPECT_THAT(RemovedUnits(set, order, 2),
              ElementsAre(false, true, false, true, true, true, false, false));
  EXPECT_THAT(SetsOf({Grouped({8, 3}, units, 8, 2)}, 4)[0].counts(), ElementsAre(0, 2))
      << "4 of 8 filters";
}

TEST(FilterSetTest, UnitsOfSeveralFiltersAreRoundedByFilters) {
  const std::vector<uint32_t> heads = {0, 0, 1, 1, 2, 2, 3, 3};
  EXPECT_THAT(SetsOf({Grouped({8, 3}, heads, 4)}, 4)[0].counts(), ElementsAre(0, 2));
  EXPECT_THAT(SetsOf({Grouped({8, 3}, heads, 4)}, 2)[0].counts(), ElementsAre(0, 1, 2, 3));
}

TEST(FilterSetTest, LayersOfAGroupAreOneSet) {
  const std::vector<Layer> layers = {Grouped({3, 2}, {0, 1, 2}, 3), FilterLayerOf({5, 1}),
                                     Grouped({6, 4}, {2, 2, 1, 1, 0, 0}, 3)};
  const std::vector<FilterSet> sets = SetsOf(layers);
  ASSERT_EQ(sets.size(), 2u);
  EXPECT_THAT(sets[0].layers(), ElementsAre(0, 2));
  EXPECT_THAT(sets[1].layers(), ElementsAre(1));
  EXPECT_EQ(sets[0].units(), 3);
  EXPECT_EQ(sets[0].weights(0), 2 + 8);
  EXPECT_EQ(sets[1].weights(4), 1);
}

TEST(FilterSetTest, WhatOneLayerHasLostAllLose) {
  const std::vector<Layer> layers = {Grouped({4, 1}, {0, 1, 2, 3}, 4),
                                     Grouped({4, 1}, {0, 1, 2, 3}, 4)};
  const FilterSet set = SetsOf(layers, 1, {MaskOf("0011"), MaskOf("0111")})[0];
  EXPECT_THAT(set.removed(), ElementsAre(true, false, false, false));
  EXPECT_EQ(set.going(0), 2);
  EXPECT_TRUE(set.Lacks(0));
  const auto order = set.Order({9, 8, 5, 1});
  EXPECT_THAT(order[0], ElementsAre(0, 1, 3, 2));
  EXPECT_THAT(RemovedUnits(set, order, 0), ElementsAre(true, true, false, false));
  EXPECT_FALSE(SetsOf(layers, 1, {MaskOf("0011"), MaskOf("0011")})[0].Lacks(2));
}

TEST(FilterSetTest, AUnitStaysWhateverTheLayersHaveLost) {
  const std::vector<Layer> layers = {Grouped({3, 1}, {0, 1, 2}, 3), Grouped({3, 1}, {0, 1, 2}, 3)};
  const FilterSet set = SetsOf(layers, 1, {MaskOf("001"), MaskOf("110")})[0];
  EXPECT_THAT(set.removed(), ElementsAre(false, false, false));
  EXPECT_EQ(set.going(0), 2);
  EXPECT_THAT(RemovedUnits(set, set.Order({1, 3, 2}), 0), ElementsAre(true, false, true));
}

TEST(FilterSetTest, ALayerThatHasSomeUnitsKeepsItsBest) {
  // A concatenation: units 0 and 1 are of one layer, 2 to 5 of the other.
  const std::vector<Layer> layers = {Grouped({2, 1}, {0, 1}, 6), Grouped({4, 1}, {2, 3, 4, 5}, 6)};
  const FilterSet set = SetsOf(layers)[0];
  EXPECT_EQ(set.CountFor(1), 4);
  EXPECT_THAT(set.Order({1, 2, 9, 8, 7, 6})[0], ElementsAre(0, 5, 4, 3, 1, 2));
}

TEST(FilterSetTest, LayersWithTheSameUnitsKeepTheSame) {
  const std::vector<Layer> layers = {Grouped({2, 1}, {0, 1}, 4), Grouped({2, 1}, {0, 1}, 4),
                                     Grouped({2, 1}, {2, 3}, 4), Grouped({2, 1}, {3, 2}, 4),
                                     Grouped({2, 1}, {2, 3}, 4)};
  EXPECT_EQ(SetsOf(layers)[0].CountFor(0.5), 2);
  std::vector<Layer> runs = layers;
  for (Layer& layer : runs) layer = Grouped({2, 1}, layer.group->units, 4, 2);
  EXPECT_EQ(SetsOf(runs)[0].CountFor(0.5), 1) << "of each run, as no layer has units in both";
}

}  // namespace
}  // namespace nni_compression::compression
