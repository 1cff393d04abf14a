"""CustomResourceDefinitions, of which only matters whether the API server serves them."""

from netloom.api.meta import ObjectMeta, Resource, Struct


class DefinitionCondition(Struct, frozen=True):
    """status.conditions[]: unlike metav1.Condition, everything but the type may be missing."""

    type: str = ""
    status: str = ""


class DefinitionStatus(Struct, frozen=True):
    """status of a CustomResourceDefinition; one just made has null for conditions."""

    conditions: tuple[DefinitionCondition, ...] | None = ()


class CustomResourceDefinition(Struct, frozen=True):
    """apiextensions.k8s.io/v1 CustomResourceDefinition, without its schema."""

    metadata: ObjectMeta = ObjectMeta()
    status: DefinitionStatus = DefinitionStatus()

    @property
    def established(self) -> bool:
        """Whether objects of it are served. One that is being deleted is: its objects go first."""
        return any(each.type == "Established" and each.status == "True" for each in self.status.conditions or ())


DEFINITIONS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", CustomResourceDefinition)
