//! An ordered map that shares structure with the maps it came from.
//!
//! A treap whose priorities are a function of the key, so that its shape depends on its contents only. Changing one
//! entry makes a new map in O(log n) and leaves the old one as it is; comparing two maps of one descent skips what they
//! share, so it costs O(changes · log n). Pure; cheap to clone.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;

/// The map.
pub struct Ordered<K, V> {
    root: Link<K, V>,
    len: usize,
}

type Link<K, V> = Option<Arc<Node<K, V>>>;

struct Node<K, V> {
    key: K,
    value: V,
    /// Higher ones stand above lower ones.
    priority: u64,
    left: Link<K, V>,
    right: Link<K, V>,
}

/// A key with what stood there in the older map and what stands there in the newer.
pub type Difference<K, V> = (K, Option<V>, Option<V>);

impl<K, V> Ordered<K, V> {
    /// A map without entries.
    pub const fn new() -> Self {
        Self { root: None, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entries in the order of their keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> {
        Counted { entries: self.walk(), left: self.len }
    }

    fn walk(&self) -> Iter<'_, K, V> {
        let mut iter = Iter { above: Vec::new() };
        iter.descend(&self.root);
        iter
    }

    pub fn keys(&self) -> impl ExactSizeIterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        find(&self.root, key).map(|node| &node.value)
    }

    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        find(&self.root, key).is_some()
    }

    /// The entries from `key` on, in order.
    pub fn starting_at<Q: Ord + ?Sized>(&self, key: &Q) -> Iter<'_, K, V>
    where
        K: Borrow<Q>,
    {
        let mut iter = Iter { above: Vec::new() };
        let mut link = &self.root;
        while let Some(node) = link {
            if node.key.borrow() < key {
                link = &node.right;
            } else {
                iter.above.push(node);
                link = &node.left;
            }
        }
        iter
    }
}

impl<K: Ord + Hash + Clone, V: Clone> Ordered<K, V> {
    /// Puts an entry in and returns what stood there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let priority = priority(&key);
        let mut before = None;
        self.root = Some(inserted(self.root.as_ref(), key, value, priority, &mut before));
        self.len += usize::from(before.is_none());
        before
    }

    /// Takes an entry out and returns what stood there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let before = self.get(key)?.clone();
        self.root = removed(self.root.as_ref(), key);
        self.len -= 1;
        Some(before)
    }

    /// What differs from `older`, in the order of the keys.
    pub fn differences(&self, older: &Self) -> Vec<Difference<K, V>>
    where
        V: PartialEq,
    {
        let mut found = Vec::new();
        compare(older.root.as_ref(), self.root.as_ref(), &mut |key: &K, before: Option<&V>, after: Option<&V>| {
            found.push((key.clone(), before.cloned(), after.cloned()));
            true
        });
        found
    }
}

fn find<'m, K: Borrow<Q>, V, Q: Ord + ?Sized>(root: &'m Link<K, V>, key: &Q) -> Option<&'m Node<K, V>> {
    let mut link = root;
    while let Some(node) = link {
        link = match key.cmp(node.key.borrow()) {
            Ordering::Less => &node.left,
            Ordering::Greater => &node.right,
            Ordering::Equal => return Some(node),
        };
    }
    None
}

/// The same for the same key in every process: the shape must not depend on who built the map.
fn priority<K: Hash>(key: &K) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Whether a node with this priority and key stands above `node`.
fn above<K: Ord, V>(priority: u64, key: &K, node: &Node<K, V>) -> bool {
    (priority, key) > (node.priority, &node.key)
}

impl<K: Clone, V: Clone> Node<K, V> {
    fn with(&self, left: Link<K, V>, right: Link<K, V>) -> Arc<Self> {
        let (key, value) = (self.key.clone(), self.value.clone());
        Arc::new(Self { key, value, priority: self.priority, left, right })
    }
}

fn inserted<K: Ord + Clone, V: Clone>(
    link: Option<&Arc<Node<K, V>>>,
    key: K,
    value: V,
    priority: u64,
    before: &mut Option<V>,
) -> Arc<Node<K, V>> {
    let Some(node) = link else { return Arc::new(Node { key, value, priority, left: None, right: None }) };
    let order = key.cmp(&node.key);
    if order == Ordering::Equal {
        *before = Some(node.value.clone());
        let (left, right) = (node.left.clone(), node.right.clone());
        return Arc::new(Node { key, value, priority, left, right });
    }
    if above(priority, &key, node) {
        let (left, right) = split(Some(node), &key);
        return Arc::new(Node { key, value, priority, left, right });
    }
    if order == Ordering::Less {
        let left = inserted(node.left.as_ref(), key, value, priority, before);
        node.with(Some(left), node.right.clone())
    } else {
        let right = inserted(node.right.as_ref(), key, value, priority, before);
        node.with(node.left.clone(), Some(right))
    }
}

fn removed<K: Ord + Clone + Borrow<Q>, V: Clone, Q: Ord + ?Sized>(
    link: Option<&Arc<Node<K, V>>>,
    key: &Q,
) -> Link<K, V> {
    let node = link?;
    match key.cmp(node.key.borrow()) {
        Ordering::Less => Some(node.with(removed(node.left.as_ref(), key), node.right.clone())),
        Ordering::Greater => Some(node.with(node.left.clone(), removed(node.right.as_ref(), key))),
        Ordering::Equal => joined(node.left.as_ref(), node.right.as_ref()),
    }
}

/// One tree of two, all keys of the first being less than those of the second.
fn joined<K: Ord + Clone, V: Clone>(left: Option<&Arc<Node<K, V>>>, right: Option<&Arc<Node<K, V>>>) -> Link<K, V> {
    let (Some(one), Some(other)) = (left, right) else { return left.or(right).cloned() };
    if above(one.priority, &one.key, other) {
        Some(one.with(one.left.clone(), joined(one.right.as_ref(), Some(other))))
    } else {
        Some(other.with(joined(Some(one), other.left.as_ref()), other.right.clone()))
    }
}

/// What is less than `key`, and what is greater.
fn split<K: Ord + Clone, V: Clone>(link: Option<&Arc<Node<K, V>>>, key: &K) -> (Link<K, V>, Link<K, V>) {
    let Some(node) = link else { return (None, None) };
    match key.cmp(&node.key) {
        Ordering::Less => {
            let (left, right) = split(node.left.as_ref(), key);
            (left, Some(node.with(right, node.right.clone())))
        }
        Ordering::Greater => {
            let (left, right) = split(node.right.as_ref(), key);
            (Some(node.with(node.left.clone(), left)), right)
        }
        Ordering::Equal => (node.left.clone(), node.right.clone()),
    }
}

/// Tells every difference to `tell` until it returns false; returns whether it never did.
fn compare<K, V, F>(older: Option<&Arc<Node<K, V>>>, newer: Option<&Arc<Node<K, V>>>, tell: &mut F) -> bool
where
    K: Ord + Clone,
    V: Clone + PartialEq,
    F: FnMut(&K, Option<&V>, Option<&V>) -> bool,
{
    match (older, newer) {
        (None, None) => true,
        (Some(one), Some(other)) if Arc::ptr_eq(one, other) => true,
        (Some(node), None) => {
            compare(node.left.as_ref(), None, tell)
                && tell(&node.key, Some(&node.value), None)
                && compare(node.right.as_ref(), None, tell)
        }
        (None, Some(node)) => {
            compare(None, node.left.as_ref(), tell)
                && tell(&node.key, None, Some(&node.value))
                && compare(None, node.right.as_ref(), tell)
        }
        (Some(one), Some(other)) if one.key == other.key => {
            compare(one.left.as_ref(), other.left.as_ref(), tell)
                && (one.value == other.value || tell(&one.key, Some(&one.value), Some(&other.value)))
                && compare(one.right.as_ref(), other.right.as_ref(), tell)
        }
        // The shape follows from the contents: the one that stands above is missing on the other side.
        (Some(one), Some(other)) if above(one.priority, &one.key, other) => {
            let (left, right) = split(Some(other), &one.key);
            compare(one.left.as_ref(), left.as_ref(), tell)
                && tell(&one.key, Some(&one.value), None)
                && compare(one.right.as_ref(), right.as_ref(), tell)
        }
        (Some(one), Some(other)) => {
            let (left, right) = split(Some(one), &other.key);
            compare(left.as_ref(), other.left.as_ref(), tell)
                && tell(&other.key, None, Some(&other.value))
                && compare(right.as_ref(), other.right.as_ref(), tell)
        }
    }
}

impl<K, V> Clone for Ordered<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len }
    }
}

impl<K, V> Default for Ordered<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> PartialEq for Ordered<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && compare(self.root.as_ref(), other.root.as_ref(), &mut |_, _, _| false)
    }
}

impl<K: Ord + Clone, V: Clone + Eq> Eq for Ordered<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Ordered<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Hash + Clone, V: Clone> FromIterator<(K, V)> for Ordered<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

/// The entries in order.
#[derive(Debug)]
pub struct Iter<'m, K, V> {
    /// The nodes whose left side has been told, the next one last.
    above: Vec<&'m Node<K, V>>,
}

impl<K, V> fmt::Debug for Node<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Node")
    }
}

impl<'m, K, V> Iter<'m, K, V> {
    fn descend(&mut self, mut link: &'m Link<K, V>) {
        while let Some(node) = link {
            self.above.push(node);
            link = &node.left;
        }
    }
}

impl<'m, K, V> Iterator for Iter<'m, K, V> {
    type Item = (&'m K, &'m V);

    fn next(&mut self) -> Option<Self::Item> {
        let node = self.above.pop()?;
        self.descend(&node.right);
        Some((&node.key, &node.value))
    }
}

/// An iterator that knows how much it will tell.
struct Counted<I> {
    entries: I,
    left: usize,
}

impl<I: Iterator> Iterator for Counted<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.left = self.left.saturating_sub(1);
        self.entries.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<I: Iterator> ExactSizeIterator for Counted<I> {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Map = Ordered<u8, u8>;

    fn depth<K, V>(link: &Link<K, V>) -> usize {
        link.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    #[test]
    fn ten_thousand_entries_in_order_stay_shallow() {
        let map: Ordered<u32, ()> = (0..10_000).map(|number| (number, ())).collect();
        assert_eq!(map.len(), 10_000);
        assert!(depth(&map.root) < 60, "{}", depth(&map.root));
    }

    #[test]
    fn an_older_map_stays_as_it_was() {
        let older: Map = [(1, 10), (2, 20)].into_iter().collect();
        let mut newer = older.clone();
        assert_eq!((newer.insert(1, 11), newer.remove(&2), newer.insert(3, 30)), (Some(10), Some(20), None));
        assert_eq!(older.iter().collect::<Vec<_>>(), [(&1, &10), (&2, &20)]);
        let differences = newer.differences(&older);
        assert_eq!(differences, [(1, Some(10), Some(11)), (2, Some(20), None), (3, None, Some(30))]);
    }

    #[test]
    fn one_change_among_many_is_found_without_a_walk() {
        let older: Ordered<u32, u32> = (0..10_000).map(|number| (number, 0)).collect();
        let mut newer = older.clone();
        newer.insert(4711, 1);
        let mut asked = 0;
        fn count<K: Ord, V>(one: Option<&Arc<Node<K, V>>>, other: Option<&Arc<Node<K, V>>>, asked: &mut usize) {
            *asked += 1;
            if let (Some(one), Some(other)) = (one, other)
                && !Arc::ptr_eq(one, other)
            {
                count(one.left.as_ref(), other.left.as_ref(), asked);
                count(one.right.as_ref(), other.right.as_ref(), asked);
            }
        }
        count(older.root.as_ref(), newer.root.as_ref(), &mut asked);
        assert!(asked < 200, "{asked}");
        assert_eq!(newer.differences(&older), [(4711, Some(0), Some(1))]);
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_map_whose_shape_follows_from_its_contents(
            steps in proptest::collection::vec((any::<u8>(), proptest::option::of(any::<u8>())), 0..200),
            from: u8,
        ) {
            let (mut map, mut reference) = (Map::new(), BTreeMap::new());
            let mut halfway = (map.clone(), reference.clone());
            for (at, (key, value)) in steps.iter().enumerate() {
                match value {
                    Some(value) => prop_assert_eq!(map.insert(*key, *value), reference.insert(*key, *value)),
                    None => prop_assert_eq!(map.remove(key), reference.remove(key)),
                }
                if at == steps.len() / 2 {
                    halfway = (map.clone(), reference.clone());
                }
            }
            prop_assert_eq!(map.len(), reference.len());
            prop_assert!(map.iter().eq(reference.iter()));
            prop_assert!(map.starting_at(&from).eq(reference.range(from..)));
            let rebuilt: Map = reference.clone().into_iter().collect();
            prop_assert_eq!(&map, &rebuilt);
            let keys = halfway.1.keys().chain(reference.keys()).collect::<std::collections::BTreeSet<_>>();
            let expected: Vec<_> = keys
                .into_iter()
                .map(|key| (*key, halfway.1.get(key).copied(), reference.get(key).copied()))
                .filter(|(_, before, after)| before != after)
                .collect();
            prop_assert_eq!(map.differences(&halfway.0), expected);
        }
    }
}
