//! Vose's alias tables: a weighted draw with one random number and one array read, whatever the number of members.
//!
//! A table of `n` members has `n` columns of equal size. Column `i` belongs to member `i`; what the member does not
//! fill is given to one other member, its alias. The arithmetic is in whole numbers: a column holds `W` units (the sum
//! of the weights) and member `i` owns `n * weight[i]` of all `n * W`, so no mass is lost before the very last step,
//! the scaling of each threshold to 2⁻³² of a column.

/// One column: with a uniform fraction below `threshold` it stands for its own member, else for `alias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// In units of 2⁻³² of a column; never 0, so that every member keeps a share. `u32::MAX` in a full column, where
    /// it decides nothing.
    pub threshold: u32,
    /// Index of the member that the column belongs to: its own index.
    pub own: usize,
    /// Index of the member that has the rest; `own` in a full column.
    pub alias: usize,
}

/// Returns the table for `weights`, each at least 1. The same weights always give the same table.
///
/// A member's share differs from its exact share by less than `n` * 2⁻³² of a column, so by less than 2⁻³² of the whole.
pub fn table(weights: &[u32]) -> Vec<Column> {
    if weights.windows(2).all(|pair| pair[0] == pair[1]) {
        return (0..weights.len()).map(full).collect();
    }
    let total = weights.iter().map(|&weight| u64::from(weight)).sum();
    let scale = |(own, filled): (usize, Filled)| {
        if filled.alias == own {
            return full(own);
        }
        Column { threshold: threshold(filled.mass, total), own, alias: filled.alias }
    };
    fill(weights, total).into_iter().enumerate().map(scale).collect()
}

fn full(own: usize) -> Column {
    Column { threshold: u32::MAX, own, alias: own }
}

/// What a column's own member has of the `W` units in it, and who has the rest.
struct Filled {
    mass: u64,
    alias: usize,
}

fn fill(weights: &[u32], total: u64) -> Vec<Filled> {
    let count = u64::try_from(weights.len()).expect("a length fits 64 bits");
    let mut columns: Vec<Filled> = weights
        .iter()
        .enumerate()
        .map(|(own, &weight)| Filled { mass: count * u64::from(weight), alias: own })
        .collect();
    let (mut short, mut long): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for (own, column) in columns.iter().enumerate().rev() {
        if column.mass < total {
            short.push(own);
        } else if column.mass > total {
            long.push(own);
        }
    }
    // Whole numbers keep "what is left equals what has room" true to the end, so both lists run empty together.
    while let (Some(poor), Some(&rich)) = (short.pop(), long.last()) {
        columns[rich].mass -= total - columns[poor].mass;
        columns[poor].alias = rich;
        if columns[rich].mass <= total {
            long.pop();
            if columns[rich].mass < total {
                short.push(rich);
            }
        }
    }
    columns
}

/// `mass / total` in units of 2⁻³², rounded down, but never to 0; `mass` is below `total`.
fn threshold(mass: u64, total: u64) -> u32 {
    let scaled = (u128::from(mass) << 32) / u128::from(total);
    u32::try_from(scaled).expect("the column is not full").max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weights() -> impl Strategy<Value = Vec<u32>> {
        let one = prop_oneof![4 => 1..=10u32, 2 => 1..=1000u32, 1 => 1..=u32::MAX];
        prop::collection::vec(one, 1..60)
    }

    proptest! {
        #[test]
        fn before_scaling_every_member_has_exactly_its_mass(weights in weights()) {
            let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            let columns = fill(&weights, total);
            let mut shares = vec![0u128; weights.len()];
            for (own, column) in columns.iter().enumerate() {
                prop_assert!(column.mass > 0 && column.mass <= total);
                shares[own] += u128::from(column.mass);
                shares[column.alias] += u128::from(total - column.mass);
                prop_assert!(column.alias != own || column.mass == total);
            }
            let exact: Vec<u128> = weights.iter().map(|&w| u128::from(w) * weights.len() as u128).collect();
            prop_assert_eq!(shares, exact);
        }

        #[test]
        fn after_scaling_every_share_is_within_a_unit_per_column(weights in weights()) {
            let total: u128 = weights.iter().map(|&w| u128::from(w)).sum();
            let count = weights.len() as u128;
            for (member, share) in shares(&table(&weights)).into_iter().enumerate() {
                // Both in units of 2^-32 of a column, times the total: exact whole numbers.
                let exact = (u128::from(weights[member]) * count) << 32;
                prop_assert!(exact.abs_diff(share * total) < count * total, "member {}", member);
                prop_assert!(share > 0);
            }
        }

        #[test]
        fn equal_weights_fill_every_column(weight in 1..=u32::MAX, count in 1..200usize) {
            for (own, column) in table(&vec![weight; count]).into_iter().enumerate() {
                prop_assert_eq!(column, Column { threshold: u32::MAX, own, alias: own });
            }
        }

        #[test]
        fn the_same_weights_give_the_same_table(weights in weights()) {
            prop_assert_eq!(table(&weights), table(&weights));
        }
    }

    #[test]
    fn no_members_make_an_empty_table() {
        assert_eq!(table(&[]), []);
    }

    #[test]
    fn one_in_four_is_three_quarters_of_its_own_column() {
        // Four units in two columns of four: the light one owns 2 of its column, the heavy one the rest.
        let columns = table(&[1, 3]);
        assert_eq!(columns[0], Column { threshold: 1 << 31, own: 0, alias: 1 });
        assert_eq!(columns[1], Column { threshold: u32::MAX, own: 1, alias: 1 });
    }

    /// Each member's share in units of 2⁻³² of a column.
    fn shares(columns: &[Column]) -> Vec<u128> {
        let mut shares = vec![0; columns.len()];
        for column in columns {
            let own = if column.alias == column.own { 1 << 32 } else { u128::from(column.threshold) };
            shares[column.own] += own;
            shares[column.alias] += (1 << 32) - own;
        }
        shares
    }
}
