//! Who should have which partition: spread evenly, and moving as few as possible.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidemill_core::record::TopicPartition;

/// One member of a group.
pub(super) type MemberId = u64;

/// The wanted assignment, from the last one, the members' topics and the partitions that exist.
///
/// Invariant: each partition that a member wants has exactly one of these members, and no move of one partition makes it more even.
pub(super) fn assign(
    last: &BTreeMap<TopicPartition, MemberId>,
    members: &BTreeMap<MemberId, &BTreeSet<Arc<str>>>,
    partitions: &[TopicPartition],
) -> BTreeMap<TopicPartition, MemberId> {
    let wants = |member: &MemberId, partition: &TopicPartition| {
        members.get(member).is_some_and(|topics| topics.contains(&partition.topic))
    };
    let mut load: BTreeMap<MemberId, usize> = members.keys().map(|member| (*member, 0)).collect();
    let mut wanted = BTreeMap::new();
    for partition in partitions {
        if let Some(member) = last.get(partition).filter(|member| wants(member, partition)) {
            wanted.insert(partition.clone(), *member);
            *load.entry(*member).or_default() += 1;
        }
    }
    let lightest = |load: &BTreeMap<MemberId, usize>, partition: &TopicPartition| {
        let candidates = load.iter().filter(|(member, _)| wants(member, partition));
        candidates.min_by_key(|(member, load)| (**load, **member)).map(|(member, load)| (*member, *load))
    };
    for partition in partitions {
        if !wanted.contains_key(partition)
            && let Some((member, _)) = lightest(&load, partition)
        {
            wanted.insert(partition.clone(), member);
            *load.entry(member).or_default() += 1;
        }
    }
    // Each move lowers the sum of the squared loads, so this ends. The last partitions go first: members keep their first ones.
    loop {
        let mut moved = false;
        for partition in partitions.iter().rev() {
            let Some(holder) = wanted.get(partition).copied() else { continue };
            let Some((member, lighter)) = lightest(&load, partition) else { continue };
            if lighter + 2 <= load.get(&holder).copied().unwrap_or_default() {
                wanted.insert(partition.clone(), member);
                *load.entry(member).or_default() += 1;
                *load.entry(holder).or_default() -= 1;
                moved = true;
            }
        }
        if !moved {
            return wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(topic: &str, count: i32) -> Vec<TopicPartition> {
        (0..count).map(|partition| TopicPartition::new(topic, partition)).collect()
    }

    fn loads(wanted: &BTreeMap<TopicPartition, MemberId>) -> Vec<usize> {
        let mut loads = BTreeMap::new();
        for member in wanted.values() {
            *loads.entry(*member).or_insert(0) += 1;
        }
        loads.into_values().collect()
    }

    #[test]
    fn partitions_are_spread_evenly_and_few_move() {
        let topics = BTreeSet::from([Arc::from("a"), Arc::from("b")]);
        let all: Vec<_> = partitions("a", 7).into_iter().chain(partitions("b", 3)).collect();
        let mut last = BTreeMap::new();
        for members in [1, 2, 3, 4, 3, 1, 5] {
            let members: BTreeMap<MemberId, _> = (0..members).map(|member| (member, &topics)).collect();
            let wanted = assign(&last, &members, &all);
            assert_eq!(wanted.len(), all.len(), "each partition has a member");
            let loads = loads(&wanted);
            assert!(loads.iter().max() <= loads.iter().min().map(|min| min + 1).as_ref(), "{loads:?}");
            let moved =
                wanted.iter().filter(|(partition, member)| last.get(*partition).is_some_and(|last| last != *member));
            let left = last.values().filter(|member| !members.contains_key(member)).count();
            let joined = members.keys().filter(|member| !last.values().any(|last| last == *member)).count();
            let share = all.len().div_ceil(members.len());
            assert!(moved.count() <= left + joined * share, "only what a change needs moves");
            last = wanted;
        }
    }

    #[test]
    fn a_member_gets_only_what_it_wants() {
        let (a, ab) = (BTreeSet::from([Arc::from("a")]), BTreeSet::from([Arc::from("a"), Arc::from("b")]));
        let members = BTreeMap::from([(1, &a), (2, &ab)]);
        let all: Vec<_> = partitions("a", 2).into_iter().chain(partitions("b", 2)).chain(partitions("c", 1)).collect();
        let wanted = assign(&BTreeMap::new(), &members, &all);
        let expected = [("a", 0, 1), ("a", 1, 1), ("b", 0, 2), ("b", 1, 2)];
        let expected: BTreeMap<_, _> =
            expected.iter().map(|(topic, number, member)| (TopicPartition::new(*topic, *number), *member)).collect();
        assert_eq!(wanted, expected);
    }
}
