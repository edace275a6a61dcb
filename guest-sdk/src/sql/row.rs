//! Rows, read by column.

use std::fmt::{self, Display};

use super::{Column, FromValue, Value};
use crate::bindings::tidemill::guest::sql::RowSet;

/// What a query gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    set: RowSet,
}

/// One row of [`Rows`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row<'a> {
    columns: &'a [Column],
    values: &'a [Value],
}

/// A column was read that is not there, or as what it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnError {
    /// The row has no such column.
    NoSuchColumn {
        /// The name or number that was asked for.
        column: String,
    },
    /// The column's value is of another kind, or is null and was not read as an `Option`.
    WrongType {
        /// The name or number that was asked for.
        column: String,
        /// The type that the database tells.
        type_name: String,
        /// The Rust type that was asked for.
        wanted: &'static str,
    },
}

impl Display for ColumnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ColumnError::NoSuchColumn { column } => write!(f, "the row has no column `{column}`"),
            ColumnError::WrongType { column, type_name, wanted } => {
                let type_name = if type_name.is_empty() { "unknown" } else { type_name };
                write!(
                    f,
                    "column `{column}` of type `{type_name}` cannot be read as `{wanted}`; use `Option` if it may be null"
                )
            }
        }
    }
}

impl std::error::Error for ColumnError {}

impl Rows {
    pub(crate) fn new(set: RowSet) -> Self {
        Self { set }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.set.rows.len()
    }

    /// True if there is no row.
    pub fn is_empty(&self) -> bool {
        self.set.rows.is_empty()
    }

    /// True if the host cut the result at its limit: there are more rows.
    pub fn is_truncated(&self) -> bool {
        self.set.truncated
    }

    /// The first row.
    pub fn first(&self) -> Option<Row<'_>> {
        self.iter().next()
    }

    /// The rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.set.rows.iter().map(|values| Row { columns: &self.set.columns, values })
    }
}

impl Row<'_> {
    /// The value of a column, by name or by number from 0.
    pub fn get<T: FromValue>(&self, column: impl ColumnName) -> Result<T, ColumnError> {
        let Some(index) = column.index(self.columns).filter(|index| *index < self.values.len()) else {
            return Err(ColumnError::NoSuchColumn { column: column.to_string() });
        };
        T::from_value(&self.values[index]).ok_or_else(|| ColumnError::WrongType {
            column: column.to_string(),
            type_name: self.columns[index].type_name.clone(),
            wanted: std::any::type_name::<T>(),
        })
    }
}

/// The name of a column, or its number from 0.
pub trait ColumnName: Display {
    /// The column's place in the row.
    fn index(&self, columns: &[Column]) -> Option<usize>;
}

impl ColumnName for usize {
    fn index(&self, columns: &[Column]) -> Option<usize> {
        (*self < columns.len()).then_some(*self)
    }
}

impl ColumnName for &str {
    fn index(&self, columns: &[Column]) -> Option<usize> {
        columns.iter().position(|column| column.name == *self)
    }
}
